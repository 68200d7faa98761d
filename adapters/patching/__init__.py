"""Roles and places become a patched script, and a plan that people can read."""
