import math


def sigmoid_rampup(current, length):
    """From nearly 0 to 1."""
    return math.exp(-5 * (1 - min(current, length) / length) ** 2)
