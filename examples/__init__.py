"""Runnable examples: a quickstart, and a demo that trains with and without the prototype head."""
