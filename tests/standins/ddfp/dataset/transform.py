import numpy as np
import torch


def generate_unsup_data(data, target, logits, mode="cutmix"):
    """Pastes a rectangle of the next image, of its labels and of what else belongs to its pixels into each image."""
    height, width = data.shape[2:]
    mixed = []
    for index in range(len(data)):
        top, left = np.random.randint(0, height // 2), np.random.randint(0, width // 2)
        mask = torch.ones(height, width, dtype=torch.long, device=data.device)
        mask[top : top + height // 2, left : left + width // 2] = 0
        other = (index + 1) % len(data)
        mixed.append([maps[index] * mask + maps[other] * (1 - mask) for maps in (data, target, logits)])
    return [torch.stack(maps) for maps in zip(*mixed)]
