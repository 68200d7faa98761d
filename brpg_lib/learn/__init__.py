"""The learn step: points, loss, and what moves the prototypes."""
