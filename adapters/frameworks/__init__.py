"""One declaration for each framework."""
