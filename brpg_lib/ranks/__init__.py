"""Everything that knows that there is more than one process."""
