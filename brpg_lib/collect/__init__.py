"""Filling the queues: which feature vectors become prototypes."""
