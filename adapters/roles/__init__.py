"""The parts of a training script that the head needs."""
