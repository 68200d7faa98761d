"""All choices of a demo run in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from brpg_lib import BRPGConfig, Schedule
from brpg_lib.examples.data.batches import SegmentationData
from brpg_lib.examples.data.camvid import load_camvid
from brpg_lib.examples.data.digits import CLASS_NAMES, DigitScenes
from brpg_lib.examples.data.folder import MARGIN, load_folder
from brpg_lib.examples.data.layouts import LAYOUTS
from brpg_lib.examples.data.pets import load_pets

DIGIT_SCENES = {"labeled": 80, "unlabeled": 800, "test": 200}
SIZES = {"digits": 33, "camvid": 129, "folder": 129, "pets": 129, **dict.fromkeys(LAYOUTS, 129)}
ITERATIONS = {"u2pl": 400, "unimatch": 320, "supervised": 400}
LOSS_WEIGHTS = {"u2pl": 0.3, "unimatch": 0.1, "supervised": 0.3}  # UniMatch halves its own losses
DATASETS = tuple(SIZES)
FRAMEWORKS = tuple(ITERATIONS)


@dataclass(frozen=True)
class Settings:
    """What both runs of a demo share.

    Attributes:
        framework: ``"u2pl"``, ``"unimatch"`` or ``"supervised"``.
        data: One of :data:`DATASETS`.
        seed: Seed of the scenes, the initial weights, the batches and every draw.
        iterations: Optimizer steps of each run.
        size: Side of the square crops (for digits: of the scenes).
        batch_size: Labeled, and as many unlabeled, images per step.
        device: Torch device.
        root: Directory of the images (all but digits).
        split: Partition: its name (camvid), or the directory of its lists (voc, voc_blended, cityscapes, coco).
        num_classes: Number of classes (folder).
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
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
    learning_rate: float = 6e-3
    weight_decay: float = 1e-2
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
            "loss_weight": LOSS_WEIGHTS[self.framework],
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

    def load_data(self) -> SegmentationData:
        """The dataset.

        Raises:
            ValueError: Something is missing or wrong; the message says what.
        """
        if self.data == "digits":
            return self._digits()
        if self.root is None:
            raise ValueError(f"--data {self.data} needs --root, the directory of the dataset")
        root = Path(self.root).expanduser()
        if self.data == "pets":  # which may not be there yet
            return load_pets(root, self.size, self.seed)
        if not root.is_dir():
            raise ValueError(f"--root: no such directory: {root}")
        if self.data == "camvid":
            return load_camvid(root, self.split or "1_8_seed0", self.size)
        if self.data in LAYOUTS:
            return self._published(root)
        if self.num_classes is None or self.num_classes < 2:
            raise ValueError(f"--data folder needs --num-classes, at least 2; found {self.num_classes}")
        return load_folder(root, self.num_classes, self.size, self.seed)

    def _published(self, root: Path) -> SegmentationData:
        if self.split is None:
            raise ValueError(f"--data {self.data} needs --split, a directory with labeled.txt and unlabeled.txt")
        split = Path(self.split).expanduser()
        beside = [path for path in (split / "val.txt", split.parent / "val.txt") if path.is_file()]
        return LAYOUTS[self.data].load(root, split, beside[0] if beside else None, round(MARGIN * self.size))

    def _digits(self) -> SegmentationData:
        scenes = {name: DigitScenes(name, count, self.size, self.seed) for name, count in DIGIT_SCENES.items()}
        counts = ", ".join(f"{count} {name}" for name, count in DIGIT_SCENES.items())
        return SegmentationData(
            **scenes,
            class_names=CLASS_NAMES,
            flip=False,
            scale=(0.9, 1.1),
            description=f"digit scenes {self.size}x{self.size}: {counts}",
        )
