"""Weak and strong augmentation, and CutMix. All randomness comes from torch's global generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

IGNORE_INDEX = 255
IMAGE_CENTER, IMAGE_SPREAD = 127.5, 64.0


class WeakAugment:
    """Random scale, crop and (optional) horizontal flip of an image and its label together.

    Args:
        size: Height and width of the crop.
        scale: Smallest and largest scale factor.
        flip: Whether mirrored images still show the same classes.
    """

    def __init__(self, size: int, scale: tuple[float, float] = (0.75, 1.5), flip: bool = True) -> None:
        self.size, self.scale = size, scale
        fill = {tv_tensors.Image: 128, tv_tensors.Mask: IGNORE_INDEX}
        crop = v2.RandomCrop(size, pad_if_needed=True, fill=fill)
        self.finish = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(3, H, W)`` uint8 and label ``(H, W)`` -> the same, ``size x size``; padding is 255 in the label."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        shape = [round(side * factor) for side in label.shape]
        resize = v2.Resize(shape, antialias=True)
        image, mask = self.finish(resize(tv_tensors.Image(image), tv_tensors.Mask(label)))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def strong_augment(blur: float = 1.0) -> v2.Transform:
    """Color jitter, gray and blur: changes the look of an image, moves nothing."""
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.25)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, blur))], p=0.5),
        ]
    )


def to_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 around 0."""
    return images.float().sub_(IMAGE_CENTER).div_(IMAGE_SPREAD)


def cutmix_boxes(count: int, size: int, area: tuple[float, float] = (0.1, 0.4), p: float = 0.5) -> Tensor:
    """One random box per image (with probability ``p``) as a mask ``(count, size, size)``, True inside."""
    inside = torch.zeros(count, size, size, dtype=torch.bool)
    for mask in inside:
        share, ratio, y, x, chance = torch.rand(5).tolist()
        if chance >= p:
            continue
        pixels = size * size * (area[0] + (area[1] - area[0]) * share)
        aspect = 0.5 * 4**ratio
        height = min(size, round((pixels * aspect) ** 0.5))
        width = min(size, round((pixels / aspect) ** 0.5))
        top, left = round(y * (size - height)), round(x * (size - width))
        mask[top : top + height, left : left + width] = True
    return inside


def cutmix(values: Tensor, boxes: Tensor) -> Tensor:
    """Pastes, inside each image's box, the previous image of the batch.

    Args:
        values: ``(B, H, W)`` or ``(B, C, H, W)``: images, labels or confidences.
        boxes: ``(B, H, W)`` bool.
    """
    where = boxes if values.ndim == 3 else boxes[:, None]
    return torch.where(where, values.roll(1, dims=0), values)
