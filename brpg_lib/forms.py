"""The forms in which tensors of a step come, brought to those that everything behind the door takes.

There, features are maps ``(B, D, h, w)`` or volumes ``(B, D, d, h, w)``, logits have a channel per class, and labels
are ``(B, H, W)`` or ``(B, D, H, W)`` integers that torch can compute with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from brpg_lib.validation import describe, require, require_integer, require_type

NO_CLASS = -1
"""Label of an ignored pixel, where the user's ``ignore_index`` is the index of a class too."""


def require_grid(field: str, grid: object) -> tuple[int, ...] | None:
    """Require the sizes of a grid of tokens, or ``None``.

    Raises:
        TypeError: It is something else.
        ValueError: It has another number of axes, or one without tokens.
    """
    if grid is None:
        return None
    require_type(isinstance(grid, (tuple, list, torch.Size)), field, "None or (h, w) of the tokens", repr(grid))
    require(len(grid) in (2, 3), field, "(h, w), or (d, h, w)", repr(grid))  # type: ignore[arg-type]
    sizes: tuple[int, ...] = tuple(grid)  # type: ignore[arg-type]
    for size in sizes:
        require_integer(field, size, 1)
    return sizes


def maps_of_tokens(field: str, tokens: object, grid: tuple[int, ...] | None) -> object:
    """Tokens ``(B, N, D)`` in rows of a grid as maps ``(B, D, *grid)``; what is no such tensor stays as it is.

    Tokens before those of the grid (class and register tokens of a transformer) are left out.

    Raises:
        ValueError: There are fewer tokens than places of the grid.
    """
    if grid is None or not isinstance(tokens, Tensor) or tokens.ndim != 3:
        return tokens
    places = math.prod(grid)
    fits = tokens.shape[1] >= places
    require(fits, field, f"at least {places} tokens for a grid of {grid}", describe(tokens))
    return tokens[:, tokens.shape[1] - places :].mT.unflatten(2, grid)


def pixels_of(value: object, features: object) -> object:
    """Labels, or what belongs to pixels, without a channel of size 1, in a type that torch can compute with."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(features, Tensor) and value.ndim == features.ndim and value.ndim > 3 and value.shape[1] == 1:
        value = value.squeeze(1)
    unusual = value.dtype in (torch.uint16, torch.uint32, torch.uint64)  # few operations know them
    return value.long() if unusual else value


def labels_of(value: object, features: object) -> object:
    """:func:`pixels_of`; a mask of a foreground is one of classes 0 and 1."""
    value = pixels_of(value, features)
    return value.to(torch.uint8) if isinstance(value, Tensor) and value.dtype == torch.bool else value


def two_classes(logits: Tensor, num_classes: int) -> Tensor:
    """The one logit of a foreground as those of background and foreground, with the same probabilities."""
    if num_classes != 2 or logits.shape[1] != 1:
        return logits
    return torch.cat((torch.zeros_like(logits), logits), dim=1)


def without_ignored(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels with :data:`NO_CLASS` where they were the index of a class that is ignored."""
    if not 0 <= ignore_index < num_classes:
        return labels
    labels = labels.long()
    return labels.masked_fill(labels == ignore_index, NO_CLASS)
