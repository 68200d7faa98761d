"""Every hyper-parameter of the method, validated once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brpg_lib.fields import PlainFields
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.validation import (
    MAX_SIZE,
    require,
    require_bool,
    require_choice,
    require_integer,
    require_number,
    require_pair,
    require_type,
)

DISPERSIONS = ("cosine", "l2", "l2_normalized")
CENTROIDS = ("mean", "confidence")
BACKENDS = ("triton", "numba", "torch")
"""Of the clustering, fastest first; each serves some devices and storage types, the last one all."""
MAX_PROTOTYPES = 1024
"""Per class and group."""
SMALL_DATA: Mapping[str, Any] = {"pseudo_label_share": 0.5, "loss_weight": 0.3}
"""What :meth:`BRPGConfig.small_data` changes."""


@with_checked_keywords
@dataclass(frozen=True, kw_only=True)
class BRPGConfig(PlainFields):
    """Hyper-parameters of boundary-refined prototype generation, in the paper's terms.

    >>> BRPGConfig(temperature=0.2, num_prototypes=(3, 2)).num_prototypes
    (3, 2)
    >>> BRPGConfig(momentum=2.0)
    Traceback (most recent call last):
    ValueError: momentum: expected a number in [0.0, 1.0], found 2.0

    Frozen and validated: a wrong value raises at construction. Every module takes the fields it needs as keyword
    arguments of the same names and defaults.

    Attributes:
        num_prototypes: Prototypes per class in the (high, low) confidence group before the split.
        confidence_threshold: Confidence from which a pixel belongs to the high group, in (0, 1].
        confidence_floor: Correct labeled pixels at or below it enter no group. Unused with ``class_adaptive``.
        class_adaptive: ``None``, or ``(t_min, t_max)``: each class's threshold follows the running mean of its
            ground-truth probability, clipped to this range.
        adaptive_momentum: Momentum of that running mean.
        fixed_threshold_classes: Classes that keep ``confidence_threshold`` under ``class_adaptive``.
        samples_per_image: Cap of collected pixels per step: this times the images of the batch.
        class_balance: ``None`` for a uniform draw under the cap, or the exponent ``e`` of each pixel's draw weight
            ``1 / count(its class) ** e``.
        queue_size: Rows of each class and group queue.
        separate_confidence: ``False`` pools high and low in one group of ``sum(num_prototypes)`` prototypes, without
            a split (the paper's ablation baseline).
        rare_class_fallback: Keep the most confident ground-truth pixels of each class, right or wrong, and fill groups
            of fewer than ten rows from them (the paper's COCO path).
        split_fraction: Share of the classes whose group gets more prototypes; 0 turns the split off.
        split_increment: Prototypes that a split adds.
        dispersion: What makes a class scattered: ``"cosine"``, ``"l2"`` or ``"l2_normalized"``.
        centroid: Prototype of a cluster: its ``"mean"``, or the mean weighted by ``"confidence"``.
        restarts: Seedings of the clustering that compete for the smallest inertia.
        max_iterations: Bound of the Lloyd iterations of each stage of the clustering.
        backend: What runs the clustering: ``"triton"``, ``"numba"``, ``"torch"``, or ``None`` for the fastest that is
            installed and fits. May change when a training goes on.
        grid_size: Labeled points form a regular grid of ``(grid_size + 1) ** 2`` pixels.
        unlabeled_samples_per_image: Cap of pseudo-labeled points per step: this times the images of the batch.
        pseudo_label_share: ``None`` takes pseudo-labeled points from above the schedule's threshold, as published. A
            number takes them from this share of each class's pseudo labels, the most confident ones (class-balanced
            self-training, Zou et al., ECCV 2018); the threshold then holds only for classes not seen yet.
        temperature: Divides the cosine similarity in the loss.
        momentum: Share of a prototype that an update keeps.
        misclassified_weight: How many times a point counts, in the mean of the loss and in the mean that moves its
            prototype, when the prototypes put it into a wrong class.
        point_balance: Exponent ``e`` of each class's weight ``1 / (number of its points) ** e`` in the mean of the
            loss: 0 for the mean over points, as published; 1 for the mean over classes of the mean over their points.
            (The momentum update knows no such weight: the points that move a prototype are all of one class.)
        labeled_weight: Weight of the labeled points' mean loss.
        unlabeled_weight: Weight of the unlabeled points' mean loss.
        loss_weight: Weight of the prototype loss in the total (lambda_pro), on top of the two weights before.
        align_corners: How feature and label pixels correspond; as in ``torch.nn.functional.interpolate``.
        ignore_index: Label of pixels without a class.

    Raises:
        TypeError: A field is of a wrong type; the message names it.
        ValueError: A field is out of range; likewise.
    """

    num_prototypes: tuple[int, int] = (2, 2)
    confidence_threshold: float = 0.8
    confidence_floor: float = 0.0
    class_adaptive: tuple[float, float] | None = None
    adaptive_momentum: float = 0.999
    fixed_threshold_classes: tuple[int, ...] = ()
    samples_per_image: int = 5000
    class_balance: float | None = None
    queue_size: int = 30000
    separate_confidence: bool = True
    rare_class_fallback: bool = False
    split_fraction: float = 0.05
    split_increment: int = 1
    dispersion: str = "cosine"
    centroid: str = "mean"
    restarts: int = 8
    max_iterations: int = 100
    backend: str | None = None
    grid_size: int = 32
    unlabeled_samples_per_image: int = 1000
    pseudo_label_share: float | None = None
    temperature: float = 0.1
    momentum: float = 0.99
    misclassified_weight: float = 1.0
    point_balance: float = 0.0
    labeled_weight: float = 1.0
    unlabeled_weight: float = 1.0
    loss_weight: float = 1.0
    align_corners: bool = True
    ignore_index: int = 255

    def __post_init__(self) -> None:
        self._make_plain()
        self._validate()

    def _validate(self) -> None:
        pair = self.num_prototypes
        require_pair("num_prototypes", pair, "a pair (high, low) of integers")
        for name, count in zip(("num_prototypes[0]", "num_prototypes[1]"), pair, strict=True):
            require_integer(name, count, 1, MAX_PROTOTYPES)
        require_number("confidence_threshold", self.confidence_threshold, 0.0, 1.0, open_low=True)
        require_number("confidence_floor", self.confidence_floor, 0.0, 1.0)
        require(
            self.confidence_floor < self.confidence_threshold,
            "confidence_floor",
            f"a number below confidence_threshold ({self.confidence_threshold})",
            self.confidence_floor,
        )
        if self.class_adaptive is not None:
            bounds = self.class_adaptive
            require_pair("class_adaptive", bounds, "None or a pair (t_min, t_max)")
            require_number("class_adaptive[0]", bounds[0], 0.0, 1.0)
            require_number("class_adaptive[1]", bounds[1], bounds[0], 1.0)
        require_number("adaptive_momentum", self.adaptive_momentum, 0.0, 1.0)
        fixed = self.fixed_threshold_classes
        require_type(isinstance(fixed, tuple), "fixed_threshold_classes", "a tuple of class indices", repr(fixed))
        for index in self.fixed_threshold_classes:
            require_integer("fixed_threshold_classes", index, 0)
        require_integer("samples_per_image", self.samples_per_image, 1)
        if self.class_balance is not None:
            require_number("class_balance", self.class_balance, 0.0, 10.0)
        require_integer("queue_size", self.queue_size, 1)
        for field in ("separate_confidence", "rare_class_fallback", "align_corners"):
            require_bool(field, getattr(self, field))
        require(
            self.separate_confidence or not self.rare_class_fallback,
            "rare_class_fallback",
            "False with separate_confidence=False (there are no groups to fill)",
            self.rare_class_fallback,
        )
        require_number("split_fraction", self.split_fraction, 0.0, 1.0)
        require_integer("split_increment", self.split_increment, 1, MAX_PROTOTYPES)
        require_choice("dispersion", self.dispersion, DISPERSIONS)
        require_choice("centroid", self.centroid, CENTROIDS)
        require_integer("restarts", self.restarts, 1)
        require_integer("max_iterations", self.max_iterations, 1)
        if self.backend is not None:
            require_choice("backend", self.backend, BACKENDS)
        require_integer("grid_size", self.grid_size, 1)
        require_integer("unlabeled_samples_per_image", self.unlabeled_samples_per_image, 1)
        if self.pseudo_label_share is not None:
            require_number("pseudo_label_share", self.pseudo_label_share, 0.0, 1.0, open_low=True)
        require_number("temperature", self.temperature, 0.0, 1e6, open_low=True)
        require_number("momentum", self.momentum, 0.0, 1.0)
        require_number("misclassified_weight", self.misclassified_weight, 0.0, 1e6)
        require_number("point_balance", self.point_balance, 0.0, 10.0)
        for field in ("labeled_weight", "unlabeled_weight", "loss_weight"):
            require_number(field, getattr(self, field), 0.0, 1e6)
        require_integer("ignore_index", self.ignore_index, -MAX_SIZE)

    @property
    def max_prototypes(self) -> int:
        """Prototypes that one group of one class can have: the ``K`` of every ``(C, 2, K, ...)`` buffer."""
        if not self.separate_confidence:
            return sum(self.num_prototypes)
        return max(self.num_prototypes) + (self.split_increment if self.split_fraction > 0 else 0)

    @classmethod
    def pascal(cls, **overrides: Any) -> BRPGConfig:
        """The official settings for PASCAL VOC 2012."""
        return cls(**overrides)

    @classmethod
    def cityscapes(cls, **overrides: Any) -> BRPGConfig:
        """The official settings for Cityscapes: those of PASCAL VOC; its longer phases are in the schedule."""
        return cls(**overrides)

    @classmethod
    def coco(cls, **overrides: Any) -> BRPGConfig:
        """The official settings for COCO: with the fallback for rare classes."""
        return cls(**({"rare_class_fallback": True} | overrides))

    @classmethod
    def small_data(cls, **overrides: Any) -> BRPGConfig:
        """For few labeled images and short trainings; chosen by our own measurements, not published.

        Unlabeled points come from the most confident half of each class's pseudo labels, since one threshold for all
        classes leaves the hard ones out, and the loss counts less beside those of the framework.

        >>> config = BRPGConfig.small_data(temperature=0.2)
        >>> config.pseudo_label_share, config.loss_weight, config.temperature
        (0.5, 0.3, 0.2)
        """
        return cls(**(dict(SMALL_DATA) | overrides))

    def arguments_of(self, module: Callable[..., Any]) -> dict[str, Any]:
        """The fields that ``module`` takes as keyword arguments, by name."""
        parameters = inspect.signature(module).parameters
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in parameters}
