"""What ``brpg check-data`` looks at in a directory, one check per file."""
