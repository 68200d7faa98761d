"""The one training loop of the examples: recipes, data, networks, semi-supervised frameworks, reports."""
