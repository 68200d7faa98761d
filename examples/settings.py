"""All choices of a demo run in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from brpg_lib import BRPGConfig, Schedule
from brpg_lib.examples.data.batches import SegmentationData
from brpg_lib.examples.data.catalog import DATASETS, open_data
from brpg_lib.examples.trainers.second_opinion import KINDS
from brpg_lib.validation import as_value_errors, require, require_number

MARGIN = 1.4  # short side of the reduced images, in crops
SIZES = {name: 65 if name == "digits" else 129 for name in DATASETS}
FRAMEWORKS = ("mean_teacher", "u2pl", "unimatch", "supervised")


@dataclass(frozen=True)
class Settings:
    """What both runs of a demo share.

    Attributes:
        framework: ``"mean_teacher"``, ``"u2pl"``, ``"unimatch"`` or ``"supervised"``.
        data: One of :data:`DATASETS`.
        seed: Seed of the scenes, the initial weights, the batches and every draw.
        iterations: Optimizer steps of each run.
        size: Side of the square crops (for digits: of the scenes).
        batch_size: Labeled, and as many unlabeled, images per step.
        device: Torch device.
        root: Directory of the images (all but digits).
        split: Partition: its name (camvid), or the directory of its lists (voc, voc_blended, cityscapes, coco).
        num_classes: Number of classes (folder).
        all_labels: Whether the unlabeled images keep their labels: what a training could reach at most.
        class_share: Of the pseudo labels of each class, the share that teaches, the most reliable ones; None for the
            framework's own rule, in which hard classes hardly ever teach.
        second_opinion: Whether the prototypes change the pseudo labels: ``"product"`` or ``"agreement"``; None as
            published.
        supervised_only: Share of the iterations before pseudo labels teach.
        loss: Supervised loss, one of :data:`brpg_lib.examples.trainers.losses.LOSSES`.
        learning_rate: Peak learning rate of AdamW.
        encoder_rate: Share of it for a pretrained encoder.
        weight_decay: Weight decay of AdamW.
        rise: Share of the iterations in which the learning rate rises linearly, before it decays.
        network: One of :data:`brpg_lib.examples.networks.NAMES`.
        pretrained: Whether its encoder starts from ImageNet weights.
        width: Width of the compact network.
        feature_dim: Channels of the representation.
        overrides: Fields of the head's ``BRPGConfig`` and ``Schedule`` that differ from the ones below.
    """

    framework: str
    data: str
    seed: int
    iterations: int
    size: int
    batch_size: int
    device: str = "cpu"
    root: str | None = None
    split: str | None = None
    num_classes: int | None = None
    all_labels: bool = False
    class_share: float | None = 0.5
    second_opinion: str | None = None
    supervised_only: float = 0.25
    loss: str = "half_hard"
    learning_rate: float = 6e-3
    encoder_rate: float = 0.3
    weight_decay: float = 1e-2
    rise: float = 0.05
    network: str = "compact"
    pretrained: bool = False
    width: int = 32
    feature_dim: int = 32
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and checkpoints."""
        return asdict(self)

    @property
    def schedule(self) -> Schedule:
        """A fifth of the training warms up, a twentieth collects, the rest learns.

        The projection is untrained while the queues fill first, and the features soon move away from the prototypes
        made of them. Hence the repeated clustering.
        """
        warmup, collect = self.iterations // 5, max(1, self.iterations // 20)
        total = max(self.iterations, warmup + collect)
        lengths = {"warmup": warmup, "collect": collect, "total": total, "recluster_every": max(1, total // 20)}
        return Schedule(**(lengths | self._overrides(Schedule)))

    @property
    def brpg(self) -> BRPGConfig:
        """The official hyper-parameters, with smaller queues and fewer points, and prototypes that move faster."""
        config = {
            "queue_size": 3000,
            "samples_per_image": 500,
            "unlabeled_samples_per_image": 500,
            "grid_size": min(32, (self.size - 1) // 2),
            "momentum": 0.95,
        }
        return BRPGConfig(**(config | self._overrides(BRPGConfig)))

    def _overrides(self, kind: type[BRPGConfig] | type[Schedule]) -> dict[str, Any]:
        """Those of the overrides that are fields of a class."""
        names = {entry.name for entry in fields(kind)}
        return {name: value for name, value in self.overrides.items() if name in names}

    def __post_init__(self) -> None:
        known = {entry.name for kind in (BRPGConfig, Schedule) for entry in fields(kind)}
        unknown = sorted(set(self.overrides) - known)
        if unknown:
            raise ValueError(f"overrides: expected fields of BRPGConfig or Schedule, found {', '.join(unknown)}")
        with as_value_errors():
            if self.class_share is not None:
                require_number("class_share", self.class_share, 0.0, 1.0, open_low=True)
            expected = f"one of {', '.join(KINDS)}, or None"
            require(self.second_opinion in (None, *KINDS), "second_opinion", expected, self.second_opinion)
            require_number("supervised_only", self.supervised_only, 0.0, 1.0)
            _ = self.brpg, self.schedule

    def load_data(self) -> SegmentationData:
        """The dataset.

        Raises:
            ValueError: Something is missing or wrong; the message says what.
        """
        return open_data(
            self.data,
            root=self.root,
            split=self.split,
            num_classes=self.num_classes,
            size=self.size,
            seed=self.seed,
            short_side=round(MARGIN * self.size),
            all_labels=self.all_labels,
        )
