"""What a script does, read from its syntax."""
