"""Which feature vectors become prototypes (the paper's confidence-based prototype generation, CPG)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.collect.pixels import Pixels, Source, labels_at, probabilities, sums_of_own_class
from brpg_lib.collect.samples import FALLBACK, HIGH, LOW, NONE, Samples
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.choosing import can_exceed, draw, numbers
from brpg_lib.kernels.classes import known_classes
from brpg_lib.kernels.segments import counts_by_index, positions_in_group
from brpg_lib.kernels.vectors import is_finite
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum, rank
from brpg_lib.state import StateModule
from brpg_lib.validation import MAX_COUNT, require, require_integer

_LINEAR = {3: "bilinear", 4: "trilinear"}
"""What upsamples logits to labels of so many axes."""


@with_checked_keywords
class ConfidenceSampler(StateModule):
    """Chooses pixels at feature resolution and sorts them into a high- and a low-confidence group.

    Labeled pixels count where the student predicts their label: from the class's threshold on they are high, below it
    and above the floor low. Unlabeled pixels of the teacher's weak view with confidence of at least
    ``confidence_threshold`` are high. Caps of ``samples_per_image`` times the images of the step hold per group.

    In train mode each call also moves the class-adaptive thresholds and draws other pixels under the caps; in eval mode
    it changes nothing.

    >>> sampler = ConfidenceSampler(num_classes=2, confidence_threshold=0.8)
    >>> logits = torch.tensor([[[[4.0, 0.5]], [[0.0, 0.0]]]])  # sure of one pixel, less of the other
    >>> labels = torch.zeros(1, 1, 2, dtype=torch.long)
    >>> batch = LabeledBatch(features=torch.rand(1, 8, 1, 2), logits=logits, labels=labels)
    >>> sampler(batch).groups  # high, low
    tensor([0, 1])

    Buffers:
        thresholds: ``(C,)`` float32, each class's running mean of the ground-truth probability (starting at
            ``confidence_threshold``). Clipped to ``class_adaptive`` where it is applied, see :meth:`class_thresholds`.
        draws: ``()`` int64, calls in train mode so far.

    Args:
        num_classes: Number of classes C.
        confidence_threshold: Confidence from which a pixel belongs to the high group, in (0, 1].
        confidence_floor: Correct labeled pixels at or below it enter no group. Unused with ``class_adaptive``.
        class_adaptive: ``None``, or ``(t_min, t_max)``: each class's threshold follows its mean ground-truth
            probability in this range.
        adaptive_momentum: Momentum of that mean.
        fixed_threshold_classes: Classes that keep ``confidence_threshold`` under ``class_adaptive``.
        samples_per_image: Cap of collected pixels per step: this times the images of the batch.
        class_balance: ``None`` for a uniform draw under the cap, or the exponent ``e`` of each pixel's draw weight
            ``1 / count(its class) ** e``.
        separate_confidence: ``False`` pools the high and the low group (the paper's ablation baseline).
        rare_class_fallback: Keep the most confident ground-truth pixels of each class, right or wrong, for groups of
            fewer than ten rows (the paper's COCO path).
        align_corners: How feature and label pixels correspond; as in ``torch.nn.functional.interpolate``.
        ignore_index: Label of pixels without a class.
        seed: Seed of the draw under the caps.
        process_group: Ranks that share the thresholds.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    thresholds: Tensor
    draws: Tensor
    _fixed: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        confidence_threshold: float = 0.8,
        confidence_floor: float = 0.0,
        class_adaptive: tuple[float, float] | None = None,
        adaptive_momentum: float = 0.999,
        fixed_threshold_classes: tuple[int, ...] = (),
        samples_per_image: int = 5000,
        class_balance: float | None = None,
        separate_confidence: bool = True,
        rare_class_fallback: bool = False,
        align_corners: bool = True,
        ignore_index: int = 255,
        seed: int = 0,
        process_group: ProcessGroup = None,
    ) -> None:
        super().__init__()
        num_classes = require_integer("num_classes", num_classes, 1)
        seed = require_integer("seed", seed, 0, MAX_COUNT)
        self.config = BRPGConfig(
            confidence_threshold=confidence_threshold,
            confidence_floor=confidence_floor,
            class_adaptive=class_adaptive,
            adaptive_momentum=adaptive_momentum,
            fixed_threshold_classes=fixed_threshold_classes,
            samples_per_image=samples_per_image,
            class_balance=class_balance,
            separate_confidence=separate_confidence,
            rare_class_fallback=rare_class_fallback,
            align_corners=align_corners,
            ignore_index=ignore_index,
        )
        for index in self.config.fixed_threshold_classes:
            require(index < num_classes, "fixed_threshold_classes", f"classes below {num_classes}", index)
        self.num_classes = num_classes
        self.seed = seed
        self.process_group = process_group
        self.register_state("thresholds", torch.full((num_classes,), confidence_threshold, dtype=torch.float32))
        self.register_state("draws", torch.zeros((), dtype=torch.int64))
        self.register_state("_fixed", self._fixed_classes(self.thresholds.device), persistent=False)

    def _fixed_classes(self, device: torch.device) -> Tensor:
        """Which classes keep the constant threshold: ``(C,)`` bool."""
        fixed = torch.tensor(self.config.fixed_threshold_classes, dtype=torch.int64, device=device)
        return (torch.arange(self.num_classes, device=device)[:, None] == fixed).any(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.put("_fixed", self._fixed_classes(self.thresholds.device))  # on the meta device it had no values

    def reset(self) -> None:
        """Forget what was seen: thresholds and draws are those of a new sampler."""
        self.thresholds.fill_(self.config.confidence_threshold)
        self.draws.zero_()
        self.put("_fixed", self._fixed_classes(self.thresholds.device))

    def class_thresholds(self) -> Tensor:
        """The confidence threshold ``t_c`` of each class in force: ``(C,)`` float32."""
        config = self.config
        constant = torch.full_like(self.thresholds, config.confidence_threshold)
        if config.class_adaptive is None:
            return constant
        return torch.where(self._fixed, constant, self.thresholds.clamp(*config.class_adaptive))

    @torch.no_grad()
    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None = None) -> Samples:
        """Sample one step.

        Args:
            labeled: Labeled images with ``logits``.
            unlabeled: Unlabeled images; used where they carry ``weak_features`` and ``weak_logits``.

        Returns:
            The chosen feature vectors, labeled ones first.

        Raises:
            ValueError: ``labeled.logits`` is missing, or a batch does not fit the module.
        """
        require(labeled.logits is not None, "labeled.logits", "logits (B, C, h, w) to sample by", None)
        for batch in (labeled, unlabeled):
            if batch is not None:
                batch.check(self.num_classes, labeled.features.shape[1], self.config.ignore_index)
        return Samples.joined([part.without_gaps() for part in self.sample(labeled, unlabeled)])

    @torch.no_grad()
    def sample(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> tuple[Samples, Samples]:
        """:meth:`forward` of batches that are checked, with the vectors of labeled and of unlabeled images apart."""
        self.begin(labeled)
        own, rare = self._labeled_pixels(labeled)
        sources, images = [own], [labeled.num_images]
        if unlabeled is not None and unlabeled.weak_features is not None and unlabeled.weak_logits is not None:
            sources.append(self._unlabeled_pixels(unlabeled, unlabeled.weak_features, unlabeled.weak_logits))
            images.append(len(unlabeled.weak_features))
        samples = self._draw([source.pixels for source in sources], images)
        if rare is not None:
            samples[0] = Samples.joined([samples[0], self._draw_per_class(rare)])
        self.end()
        samples = [replace(part, dropped=source.dropped) for part, source in zip(samples, sources, strict=True)]
        return samples[0], samples[1] if len(samples) == 2 else samples[0].none()

    @torch.no_grad()
    def begin(self, labeled: LabeledBatch) -> None:
        """What comes before sampling a step: thresholds follow the labeled images."""
        if self.training and self.config.class_adaptive is not None:
            self._follow_confidence(labeled)

    def end(self) -> None:
        """What comes after it: the next step draws other pixels."""
        if self.training:
            self.draws += 1

    @property
    def floor(self) -> float:
        """Confidence above which a right pixel is low: ``confidence_floor``, and none with ``class_adaptive``."""
        return self.config.confidence_floor if self.config.class_adaptive is None else -1.0

    def _labeled_pixels(self, labeled: LabeledBatch) -> tuple[Source, Pixels | None]:
        """Pixels that the student predicts right; with the fallback for rare classes, also all that have a class."""
        config = self.config
        assert labeled.logits is not None
        shown = labels_at(labeled.labels, labeled.features.shape[2:]).flatten()
        labels, has_class = known_classes(shown, self.num_classes)
        probability = probabilities(labeled.logits)
        confidence, predicted = probability.max(dim=1)
        usable = confidence.isfinite() & is_finite(labeled.features).flatten()
        high = confidence >= self.class_thresholds()[labels]
        above_floor = confidence > self.floor
        groups = torch.where(high, HIGH, torch.where(above_floor, LOW, NONE))
        right = has_class & usable & (predicted == labels)
        pixels = Pixels(labeled.features, labels, torch.where(right, groups, NONE), confidence)
        source = Source(pixels, (has_class & ~usable).sum())
        if not config.rare_class_fallback:
            return source, None
        true_confidence = probability.gather(1, labels[:, None])[:, 0]
        every = torch.where(has_class & usable, FALLBACK, NONE)
        return source, Pixels(labeled.features, labels, every, true_confidence)

    def _unlabeled_pixels(self, unlabeled: UnlabeledBatch, features: Tensor, logits: Tensor) -> Source:
        """Pixels of the weak views about which the teacher is confident."""
        confidence, predicted = probabilities(logits).max(dim=1)
        shown = torch.ones_like(predicted, dtype=torch.bool)
        if unlabeled.weak_valid is not None:
            shown = labels_at(unlabeled.weak_valid, features.shape[2:]).flatten() > 0
        usable = confidence.isfinite() & is_finite(features).flatten()
        groups = torch.where(shown & usable & (confidence >= self.config.confidence_threshold), HIGH, NONE)
        return Source(Pixels(features, predicted, groups, confidence), (shown & ~usable).sum())

    def _key(self, group: int) -> tuple[Tensor, int, int, int]:
        """What seeds the draw for a group in this call."""
        return self.draws, self.seed, rank(self.process_group), group

    def _draw(self, pixels: list[Pixels], images: list[int]) -> list[Samples]:
        """The chosen pixels of each source, which are of so many images."""
        classes, groups = torch.cat([p.classes for p in pixels]), torch.cat([p.groups for p in pixels])
        parts = self.under_caps(groups, classes, images).split([len(p.groups) for p in pixels])
        most = (sum(cap for _, cap in self._caps(images)), self.config.samples_per_image * sum(images))
        return [p.with_groups(part).candidates(n) for p, part, n in zip(pixels, parts, most, strict=False)]

    def under_caps(self, groups: Tensor, classes: Tensor, images: Sequence[int]) -> Tensor:
        """The groups ``(M,)`` of pixels, without those that the draw leaves out.

        Args:
            groups: ``(M,)`` int64, -1 for no candidate.
            classes: ``(M,)`` int64.
            images: Numbers of labeled and, if there are any, of unlabeled images.
        """
        if not self.config.separate_confidence:
            groups = groups.clamp(max=HIGH)
        for group, cap in self._caps(images):
            candidates = groups == group
            if can_exceed(candidates, cap):
                kept = draw(candidates, cap, self._key(group), self._costs(candidates, classes))
                groups = torch.where(candidates & ~kept, NONE, groups)
        return groups

    def _caps(self, images: Sequence[int]) -> list[tuple[int, int]]:
        """Pixels of each group at most, which all images share: unlabeled ones have no low group."""
        high, low = (self.config.samples_per_image * count for count in (sum(images), images[0]))
        return [(HIGH, high), (LOW, low)] if self.config.separate_confidence else [(HIGH, high + low)]

    def _costs(self, candidates: Tensor, classes: Tensor) -> Tensor | None:
        """What drawing a pixel costs ``(N,)``: the more, the more candidates its class has; None for all alike."""
        exponent = self.config.class_balance
        if exponent is None:
            return None
        counts = counts_by_index(torch.where(candidates, classes, self.num_classes), self.num_classes)
        return counts[classes].clamp(min=1).float() ** exponent

    def _draw_per_class(self, pixels: Pixels) -> Samples:
        """At most ``samples_per_image`` pixels of each class, drawn uniformly."""
        candidates = pixels.groups != NONE
        order = numbers(candidates, self._key(FALLBACK)).argsort()
        classes, by_class = torch.where(candidates, pixels.classes, self.num_classes)[order].sort(stable=True)
        _, position = positions_in_group(classes, self.num_classes)
        cap = self.config.samples_per_image
        kept = torch.empty_like(candidates)
        kept[order[by_class]] = (position < cap) & (classes < self.num_classes)
        return pixels.with_groups(torch.where(kept, FALLBACK, NONE)).candidates(cap * self.num_classes)

    def _follow_confidence(self, labeled: LabeledBatch) -> None:
        """Move the running mean of the ground-truth probability of each class that is present."""
        assert labeled.logits is not None
        labels, has_class = known_classes(labeled.labels, self.num_classes)
        logits = nn.functional.interpolate(
            labeled.logits.float(), labels.shape[1:], mode=_LINEAR[labels.ndim], align_corners=self.config.align_corners
        )
        sums = sums_of_own_class(logits.softmax(dim=1), labels, has_class)
        all_reduce_sum(sums, self.process_group)
        mean = sums[0] / sums[1].clamp(min=1)
        momentum = self.config.adaptive_momentum
        moved = momentum * self.thresholds + (1 - momentum) * mean.float()
        self.thresholds.copy_(torch.where(sums[1] > 0, moved, self.thresholds))
