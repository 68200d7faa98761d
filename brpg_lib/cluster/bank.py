"""What is done with the prototypes of all classes: similarity, classification, momentum update."""

from __future__ import annotations

from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn

from brpg_lib.cluster.store import PrototypeStore
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels import fused
from brpg_lib.kernels.classes import known_classes
from brpg_lib.kernels.cosine import cosine_to_groups
from brpg_lib.kernels.segments import sums_by_index
from brpg_lib.kernels.vectors import is_finite
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum
from brpg_lib.validation import is_integer, require, require_tensor


@with_checked_keywords
class PrototypeBank(PrototypeStore):
    """Holds the prototypes of C classes in a high- and a low-confidence group of up to K prototypes each.

    >>> bank = PrototypeBank(num_classes=2, feature_dim=3, num_prototypes=(1, 1), split_fraction=0.0)
    >>> vectors = torch.eye(3)[:2].view(2, 1, 1, 3).repeat(1, 2, 1, 1)  # along the first axis, along the second
    >>> bank.set(vectors, torch.ones(2, 2, 1, dtype=torch.bool))
    >>> bank.similarity(torch.tensor([[5.0, 0.0, 0.0]]))
    tensor([[1., 0.]])

    State (no gradient, always float32):
        prototypes: ``(C, 2, K, D)`` float32, zero where there is no prototype. A buffer, so that a moving average of a
            model that holds the bank has averaged prototypes.
        mask: ``(C, 2, K)`` bool, true where there is one. No buffer: in eval mode, prototypes that somebody else has
            written into the buffer count as well.

    Args:
        num_classes: Number of classes C.
        feature_dim: Channels D of a feature vector.
        num_prototypes: Prototypes per class in the (high, low) confidence group before the split.
        separate_confidence: ``False`` pools the high and the low group (the paper's ablation baseline).
        split_fraction: Share of the classes whose group gets more prototypes; 0 turns the split off.
        split_increment: Prototypes that a split adds.
        momentum: Share of a prototype that an update keeps.
        misclassified_weight: How many times a point counts, in the mean that moves its prototype, when the prototypes
            put it into a wrong class.
        process_group: Ranks whose points move the prototypes together.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        num_prototypes: tuple[int, int] = (2, 2),
        separate_confidence: bool = True,
        split_fraction: float = 0.05,
        split_increment: int = 1,
        momentum: float = 0.99,
        misclassified_weight: float = 1.0,
        process_group: ProcessGroup = None,
    ) -> None:
        config = BRPGConfig(
            num_prototypes=num_prototypes,
            separate_confidence=separate_confidence,
            split_fraction=split_fraction,
            split_increment=split_increment,
            momentum=momentum,
            misclassified_weight=misclassified_weight,
        )
        super().__init__(num_classes, feature_dim, config.max_prototypes)
        self.momentum, self.misclassified_weight = momentum, misclassified_weight
        self.process_group = process_group

    @property
    def kernels(self) -> ModuleType | None:
        """What does a step with these prototypes in few launches, where it can: :mod:`brpg_lib.kernels.fused`."""
        slots = self.mask[0].numel()
        return fused.kernels_for(self.prototypes.device, self.feature_dim, self.num_classes, slots)

    def compare(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity of each feature to each class, and to every prototype.

        Args:
            features: ``(N, D)`` floating point, differentiable. A row without direction gets a gradient of 0; a zero
                row has similarity 0 to all, one that is not finite -inf.

        Returns:
            ``(N, C)`` float32, the cosine to the class's most similar prototype, differentiable; and
            ``(N, C, 2, K)`` float32, the cosine to each prototype, without gradient. -inf where there is none.

        Raises:
            ValueError: The shape or dtype is wrong.
        """
        self._check(features)
        self.follow()
        with torch.autocast(features.device.type, enabled=False):
            directions = nn.functional.normalize(rearrange(self.prototypes, "c g k d -> (c g k) d"), dim=1)
            similarity, cosine = cosine_to_groups(features, directions, self.mask.flatten(), self.num_classes)
        return similarity, rearrange(cosine, "n (c g k) -> n c g k", g=2, k=self.mask.shape[2])

    def _check(self, features: Tensor) -> None:
        fits = isinstance(features, Tensor) and features.is_floating_point() and features.ndim == 2
        fits = fits and features.shape[1] == self.feature_dim and features.device == self.prototypes.device
        expected = f"a floating-point tensor (N, {self.feature_dim}) on {self.prototypes.device}"
        require_tensor(fits, "features", expected, features)

    def similarity(self, features: Tensor) -> Tensor:
        """Similarity of each feature to each class: the cosine to the class's most similar prototype.

        Args:
            features: ``(N, D)`` points, ``(B, D, h, w)`` maps or volumes with one axis more, floating point;
                differentiable.

        Returns:
            ``(N, C)``, or ``(B, C, h, w)`` and so on, float32; -inf for a class without prototypes.

        Raises:
            ValueError: The shape or dtype is wrong.
        """
        if isinstance(features, Tensor) and features.ndim in (4, 5):
            images, _, *size = features.shape
            points, _ = self.compare(features.movedim(1, features.ndim - 1).flatten(0, -2))
            maps: Tensor = points.unflatten(0, (images, *size)).movedim(features.ndim - 1, 1)
            return maps
        return self.compare(features)[0]

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """The class whose prototype is most similar.

        >>> bank = PrototypeBank(num_classes=3, feature_dim=8)
        >>> bank.set(torch.randn(3, 2, 2, 8), torch.ones(3, 2, 2, dtype=torch.bool))
        >>> bank.classify(torch.randn(4, 8, 5, 6)).shape
        torch.Size([4, 5, 6])

        Args:
            features: ``(N, D)`` points, ``(B, D, h, w)`` maps or volumes with one axis more, floating point.

        Returns:
            ``(N,)``, or ``(B, h, w)`` and so on, int64.

        Raises:
            ValueError: The shape is wrong, or the bank is empty. (Not while the module is exported or compiled, where
                values cannot be read.)
        """
        if not torch.compiler.is_compiling():
            require(any(self.present), "prototypes", "a bank with prototypes", "an empty one; set() it first")
        return self.similarity(features).argmax(dim=1)

    @torch.no_grad()
    def update(self, features: Tensor, classes: Tensor) -> None:
        """Move each prototype towards the points nearest to it among those of its class.

        A point goes to its class's most similar prototype; a prototype with points moves to ``momentum * prototype
        + (1 - momentum) * mean of their raw features`` (paper: r <- alpha r + (1 - alpha) mean f). In
        that mean, a point that the bank misclassifies counts ``misclassified_weight`` times. Points of all ranks count
        together.

        Args:
            features: ``(N, D)`` floating point. Rows that are not finite, or longer than 1e15, move nothing.
            classes: ``(N,)`` integers; points outside 0..C-1 (the ignore index) or of a class without prototypes move
                nothing.

        Raises:
            ValueError: A shape or dtype is wrong; nothing was changed.
        """
        self._check(features)
        fits = isinstance(classes, Tensor) and classes.shape == features.shape[:1] and is_integer(classes)
        fits = fits and classes.device == features.device
        require_tensor(fits, "classes", f"integers ({features.shape[0]},) beside the features", classes)
        similarity, cosine = self.compare(features)
        with torch.autocast(features.device.type, enabled=False):
            finite = is_finite(features)
            nearest, counted = self.assign(cosine, classes)
            rows = torch.where(finite[:, None], features.float(), 0.0)
            pull = self.pull(rows, similarity.argmax(dim=1), nearest, counted & finite)
            self.move(all_reduce_sum(pull, self.process_group))

    @torch.no_grad()
    def pull(self, features: Tensor, predicted: Tensor, nearest: Tensor, counted: Tensor) -> Tensor:
        """What :meth:`update` adds up of points whose similarities and prototypes are known already.

        Args:
            features: ``(N, D)`` float32, finite.
            predicted: ``(N,)`` int64, the most similar class.
            nearest: ``(N,)`` int64 from :meth:`assign`.
            counted: ``(N,)`` bool from :meth:`assign`.

        Returns:
            ``(C * 2 * K, D + 1)`` float32: for each prototype the weighted sum of its points, and the sum of weights.
        """
        weight = counted.float()
        if self.misclassified_weight != 1:
            wrong = predicted != nearest // self.mask[0].numel()
            weight = torch.where(wrong, self.misclassified_weight * weight, weight)
        parts = (features * weight[:, None], weight[:, None])
        return torch.cat([sums_by_index(part, nearest, self.mask.numel()) for part in parts], dim=1)

    @torch.no_grad()
    def move(self, sums: Tensor) -> None:
        """Move the prototypes by the ``sums`` of :meth:`pull` over all ranks."""
        total = sums[:, -1:]
        mean = sums[:, :-1] / torch.where(total > 0, total, 1.0)
        flat = self.prototypes.view(-1, self.feature_dim)
        flat.copy_(torch.where(total > 0, self.momentum * flat + (1 - self.momentum) * mean, flat))

    def assign(self, cosine: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar prototype of each point's own class.

        Args:
            cosine: ``(N, C, 2, K)`` from :meth:`compare`.
            classes: ``(N,)`` integers.

        Returns:
            ``(N,)`` int64 index into the flattened ``(C, 2, K)``, and ``(N,)`` bool, whether there is such a prototype
            (if not, the index means nothing).
        """
        slots = self.mask[0].numel()
        target, known = known_classes(classes, self.num_classes)
        own, slot = cosine.detach().flatten(2).take_along_dim(target[:, None, None], dim=1)[:, 0].max(dim=1)
        return target * slots + slot, known & own.isfinite()
