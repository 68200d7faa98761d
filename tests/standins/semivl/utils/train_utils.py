import torch


def cutmix_img_(image, other, box):
    """Images with others inside the box, in place."""
    inside = box[:, None].expand(image.shape) == 1
    image[inside] = other[inside]


def cutmix_mask(own, other, box):
    """Labels with another's inside the box."""
    return torch.where(box == 1, other, own)


def confidence_weighted_loss(loss, confidence, ignored, cfg):
    """Mean over the pixels that are no padding; unsure ones have no loss."""
    assert cfg["conf_mode"] == "pixelwise"
    valid = ignored != 255
    return (loss * (valid & (confidence >= cfg["conf_thresh"]))).sum() / valid.sum()


class DictAverageMeter:
    """Averages by name."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.avgs, self.count = {}, 0

    def update(self, values):
        self.count += 1
        for name, value in values.items():
            before = self.avgs.get(name, 0.0)
            self.avgs[name] = before + (float(value) - before) / self.count
