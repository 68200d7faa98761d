"""The prototypes of all classes: which there are, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from brpg_lib.state import StateModule
from brpg_lib.validation import require, require_instance, require_integer, require_tensor


class PrototypeStore(StateModule):
    """What a :class:`~brpg_lib.PrototypeBank` holds.

    State (no gradient, always float32):
        prototypes: ``(C, 2, K, D)`` float32, zero where there is no prototype. A buffer, so that a moving average of a
            model that holds the bank has averaged prototypes.
        mask: ``(C, 2, K)`` bool, true where there is one. No buffer: in eval mode, prototypes that somebody else has
            written into the buffer count as well.

    Args:
        num_classes: Number of classes C.
        feature_dim: Channels D of a prototype.
        slots: Prototypes K that one group of one class can have.

    Raises:
        ValueError: A number is out of range.
    """

    prototypes: Tensor
    mask: Tensor

    def __init__(self, num_classes: int, feature_dim: int, slots: int) -> None:
        super().__init__()
        num_classes = require_integer("num_classes", num_classes, 1)
        feature_dim = require_integer("feature_dim", feature_dim, 1)
        self.num_classes, self.feature_dim = num_classes, feature_dim
        with torch.inference_mode(False):  # or nothing outside could change it
            vectors = torch.zeros(num_classes, 2, slots, feature_dim, dtype=torch.float32)
        self.register_buffer("prototypes", vectors)
        self.register_state("mask", torch.zeros(num_classes, 2, slots, dtype=torch.bool))
        self._looked_at: tuple[int, int] | None = None
        self._presence: tuple[tuple[int, int], list[bool]] | None = None

    @property
    def mask_version(self) -> tuple[int, int]:
        """Changes whenever somebody changes the mask."""
        return _version(self.mask)

    @property
    def present(self) -> list[bool]:
        """Which classes have a prototype. Read from the device only after the mask has changed."""
        self.follow()
        version = self.mask_version
        if self._presence is None or self._presence[0] != version:
            self._presence = (version, self.mask.flatten(1).any(1).tolist())
        return self._presence[1]

    def follow(self) -> None:
        """In eval mode, a prototype that a moving average has written is there, though no mask came along."""
        if self.training or torch.compiler.is_compiling() or _version(self.prototypes) == self._looked_at:
            return
        self._looked_at = _version(self.prototypes)
        written = self.prototypes.any(-1) & ~self.mask
        if bool(written.any()):
            self.mask |= written

    @torch.no_grad()
    def set(self, vectors: Tensor, mask: Tensor) -> None:
        """Replace all prototypes.

        Args:
            vectors: ``(C, 2, K', D)`` floating point with ``K' <= K``; values without ``mask`` do not matter.
            mask: ``(C, 2, K')`` bool.

        Raises:
            ValueError: A shape or dtype is wrong, or a prototype is not finite; nothing was changed.
        """
        classes, groups, slots, dim = self.prototypes.shape
        fits = isinstance(vectors, Tensor) and vectors.ndim == 4 and vectors.is_floating_point()
        fits = fits and (*vectors.shape[:2], vectors.shape[3]) == (classes, groups, dim) and vectors.shape[2] <= slots
        expected = f"a floating-point tensor ({classes}, 2, K, {dim}) with K <= {slots}"
        require_tensor(fits and not vectors.is_meta, "vectors", expected, vectors)
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == vectors.shape[:3]
        fits = fits and mask.device == vectors.device
        require_tensor(fits, "mask", f"a bool tensor {tuple(vectors.shape[:3])} beside the vectors", mask)
        mask = mask.clone()  # it may be this bank's own
        vectors = torch.where(mask[..., None], vectors.float(), 0.0)
        bad = (~vectors.isfinite()).any(-1).nonzero().tolist()
        require(not bad, "vectors", "finite values where mask is true", f"others at (class, group, slot) {bad[:3]}")
        used = vectors.shape[2]
        self.prototypes.zero_()[:, :, :used] = vectors.to(self.prototypes.device)
        self.mask.zero_()[:, :, :used] = mask.to(self.mask.device)

    @torch.no_grad()
    def adopt(
        self,
        other: PrototypeStore,
        mapping: Mapping[int, int | str] | Mapping[str, int | str],
        *,
        names: Sequence[str] = (),
        other_names: Sequence[str] = (),
    ) -> None:
        """Take prototypes over from another training, whose classes may be others.

        >>> from brpg_lib import PrototypeBank
        >>> old, new = (PrototypeBank(classes, 4, num_prototypes=(1, 1), split_fraction=0.0) for classes in (3, 2))
        >>> old.set(torch.rand(3, 2, 1, 4), torch.ones(3, 2, 1, dtype=torch.bool))
        >>> new.adopt(old, {"car": 2}, names=("road", "car"))
        >>> new.present, torch.equal(new.prototypes[1], old.prototypes[2])
        ([False, True], True)

        A class of ``mapping`` gives up the prototypes that it has; the others keep theirs. Each confidence group gets
        the prototypes of the same group, as they are: features have to come from the same network, or from one that
        starts where that ended. :func:`~brpg_lib.inspection.load_bank` reads ``other`` from a checkpoint.

        A head whose bank adopts before the training (on every rank alike) keeps these prototypes, moved by the
        momentum, until ``Schedule.recluster_every`` makes new ones, if it is set; its other classes get theirs from the
        queues. ``Schedule(warmup=0, collect=0)`` lets it learn from the first step on.

        Args:
            other: Whose prototypes to take; stays as it is.
            mapping: From own classes to the other's, by index, or by name where there are names.
            names: Of the own classes, ``C`` of them.
            other_names: Of the other's classes.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: Feature sizes differ; a class does not exist or has no prototypes; or it has more in a group
                than fit here, of which none is left out silently. Nothing was changed.
        """
        require_instance("other", other, PrototypeStore, "a PrototypeBank")
        require_instance("mapping", mapping, Mapping, "a dict from own classes to the other's")
        dim = other.feature_dim
        require(dim == self.feature_dim, "other", f"prototypes of {self.feature_dim} channels", f"{dim}")
        known, theirs = _by_name("names", names, self), _by_name("other_names", other_names, other)
        pairs = [(_index(own, known, self), _index(source, theirs, other)) for own, source in mapping.items()]
        own = [index for index, _ in pairs]
        require(len(set(own)) == len(own), "mapping", "each own class once", f"{own}")
        sources = torch.tensor([index for _, index in pairs], dtype=torch.int64, device=other.mask.device)
        vectors, mask = packed(other.prototypes[sources], other.mask[sources])
        slots = self.mask.shape[2]
        for (_, source), exists in zip(pairs, mask.tolist(), strict=True):
            high, low = map(sum, exists)
            require(high + low > 0, "mapping", "classes with prototypes", f"class {source} of the other, without any")
            fits = max(high, low) <= slots
            require(fits, "other", f"at most {slots} prototypes per group", f"({high}, {low}) of its class {source}")
        new, exist = self.prototypes.clone(), self.mask.clone()
        new[own], exist[own] = 0.0, False
        used = min(slots, vectors.shape[2])
        new[own, :, :used], exist[own, :, :used] = vectors[:, :, :used].to(new.device), mask[:, :, :used].to(new.device)
        self.set(new, exist)

    def reset(self) -> None:
        """Forget all prototypes."""
        self.prototypes.zero_()
        self.mask.zero_()

    def extra_repr(self) -> str:
        """Sizes and how many prototypes there are, for ``print(bank)``."""
        sizes = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        if self.mask.is_meta:
            return sizes
        high, low = self.mask.sum((0, 2)).tolist()
        return f"{sizes}, prototypes={high} high + {low} low"


def _version(values: Tensor) -> tuple[int, int]:
    """Changes whenever somebody writes to a tensor, and is another one for a copy of it."""
    return id(values), values._version


def packed(vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes ``(n, 2, K, D)`` and mask ``(n, 2, K)`` with those that exist first, in their order."""
    order = mask.int().argsort(dim=2, descending=True, stable=True)
    return vectors.take_along_dim(order[..., None], dim=2), mask.take_along_dim(order, dim=2)


def _by_name(field: str, names: Sequence[str], store: PrototypeStore) -> dict[str, int]:
    """Class index of each name."""
    found = {name: index for index, name in enumerate(names)}
    fits = len(names) in (0, store.num_classes) and len(found) == len(names)
    require(fits, field, f"none, or {store.num_classes} names that differ", list(names))
    return found


def _index(key: object, names: Mapping[str, int], store: PrototypeStore) -> int:
    """The class that a key of a mapping, or its value, means."""
    if isinstance(key, str):
        require(key in names, "mapping", f"class indices, or names among {list(names)}", repr(key))
        return names[key]
    require_integer("mapping", key, 0, store.num_classes - 1)
    assert isinstance(key, int)
    return key
