"""Two compact semi-supervised trainers, and the loop they share."""
