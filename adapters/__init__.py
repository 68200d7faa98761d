"""Source transforms that add the head to existing training scripts."""
