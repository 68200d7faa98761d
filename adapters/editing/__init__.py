"""Changes of a script's text that keep all else as it is."""
