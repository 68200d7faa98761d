"""What a training is, whoever starts it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from brpg_lib import BRPGConfig, Schedule
from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.catalog import DATASETS, open_data
from brpg_lib.examples.training.data.encoding import Encoding, mask_values, palette
from brpg_lib.examples.training.data.folder import CLASSES, class_names_in, fitting_size
from brpg_lib.examples.training.frameworks import TRAINERS
from brpg_lib.examples.training.frameworks.losses import LOSSES
from brpg_lib.examples.training.frameworks.second_opinion import KINDS
from brpg_lib.examples.training.networks import NAMES
from brpg_lib.settings import config_from
from brpg_lib.validation import as_value_errors, require, require_number

CHOICES: dict[str, tuple[str, ...]] = {
    "data": DATASETS,
    "framework": tuple(TRAINERS),
    "network": NAMES,
    "loss": tuple(LOSSES),
    "optimizer": ("sgd", "adamw"),
    "evaluation": ("whole", "sliding"),
    "precision": ("float32", "bfloat16", "float16"),
}
USUAL_EPOCH = 1000
"""Steps, to check lengths with before the images are counted."""
LEAST: dict[str, float] = {
    "size": 17,
    "batch_size": 2,
    "epochs": 1,
    "learning_rate": 0,
    "new_factor": 0,
    "weight_decay": 0,
    "feature_dim": 1,
    "seed": 0,
    "validate_every": 1,
    "supervised_epochs": 0,
    "short_side": 1,
    "epoch_steps": 1,
    "least_steps": 1,
    "width": 1,
    "rise": 0,
}


def _class_names(given: object) -> list[str]:
    fits = isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(n, str) and n for n in given)
    if not fits or len(set(given)) != len(given):  # type: ignore[call-overload, arg-type]
        raise ValueError(f"class_names: expected a list of different names, found {given!r}")
    return list(given)  # type: ignore[call-overload, no-any-return]


LABELS: dict[str, Callable[[object], list[str]]] = {
    "class_names": _class_names,
    "mask_values": mask_values,
    "palette": palette,
}
"""Settings that describe label images, and what brings them into their plain form."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All choices of a training; lengths are in epochs.

    Attributes:
        data: One of :data:`~brpg_lib.examples.training.data.catalog.DATASETS`.
        root: Directory of the images.
        splits: Directory that the partition is looked for in.
        split: The partition.
        num_classes: Number of classes (``data: folder``); None for that of the names, colors or values below.
        class_names: One per class (``data: folder``); None for those of the palette, of ``classes.txt``, or numbers.
        mask_values: Class or ``ignore`` of each value of the label images (``data: folder``), see
            :func:`~brpg_lib.examples.training.data.encoding.mask_values`; None where they hold class indices.
        palette: Name and color of each class (``data: folder``), see
            :func:`~brpg_lib.examples.training.data.encoding.palette`, or in a recipe's file the path of a text file
            with them; None where label images hold no colors.
        all_labels: Whether the unlabeled images keep their labels: what a training could reach at most.
        framework: ``"mean_teacher"``, ``"u2pl"``, ``"unimatch"`` or ``"supervised"``.
        network: One of :data:`brpg_lib.examples.training.networks.NAMES`.
        pretrained: Whether its encoder starts from ImageNet weights.
        width: Of the compact network.
        size: Side of the square crops; of digit scenes, their size; None for one that fits the images
            (``data: folder``), which reduces large ones if ``short_side`` is None too.
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
        colors: Whether strong views differ in color and sharpness too, or are mixed only; None as the framework has it.
        batch_size: Labeled, and as many unlabeled, images per step, over all processes.
        epochs: Length of the training.
        epoch_steps: Steps of an epoch; None for as many as it takes to see every unlabeled image once.
        least_steps: Of the whole training at least; an epoch of few images sees them repeatedly.
        supervised_epochs: Epochs before pseudo labels teach.
        class_share: Of the pseudo labels of each class, the share that teaches, the most reliable ones; None for the
            framework's own rule.
        second_opinion: Whether the prototypes change the pseudo labels: ``"product"`` or ``"agreement"``; None as
            published.
        loss: Supervised loss: ``"cross_entropy"``, or ``"half_hard"`` (half of it over hard pixels only).
        optimizer: ``"sgd"`` (momentum 0.9) or ``"adamw"``.
        learning_rate: Of the encoder at its peak; it decays with ``(1 - i / N) ** 0.9``.
        rise: Share of the training in which the learning rate rises linearly, before it decays.
        new_factor: How many times larger it is for everything but the encoder.
        weight_decay: Weight decay.
        evaluation: Whole images, or windows of ``size`` that move by two thirds of it.
        validate_every: Epochs between validations.
        precision: ``"float32"``, or the type of mixed precision.
        seed: Of initial weights, order, augmentations and draws.
        warmup: Epochs before the queues fill.
        collect: Epochs in which they do.
        ramp_start: Epoch from which pseudo-labeled points need a growing confidence; None for a sixteenth of all.
        extrapolate_threshold: Whether they need less and less before it, as published.
        recluster_every: Epochs between clusterings, or None to cluster once.
        min_rows: Rows that each class seen needs before the prototypes start.
        max_collect: With ``min_rows``, epochs of collecting at most.
        feature_dim: Channels of the representation.
        head: Fields of :class:`~brpg_lib.BRPGConfig`, and ``preset``, which they change.

    Raises:
        ValueError: A value is of the wrong kind or out of range; the message names it.
    """

    data: str
    root: str | None = None
    splits: str | None = None
    split: str | None = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    mask_values: Sequence[str] | None = None
    palette: Sequence[str] | None = None
    all_labels: bool = False
    framework: str = "u2pl"
    network: str = "resnet101"
    pretrained: bool = True
    width: int = 32
    size: int | None = 513
    short_side: int | None = None
    colors: bool | None = None
    batch_size: int = 16
    epochs: int = 80
    epoch_steps: int | None = None
    least_steps: int | None = None
    supervised_epochs: float = 1.0
    class_share: float | None = None
    second_opinion: str | None = None
    loss: str = "half_hard"
    optimizer: str = "sgd"
    learning_rate: float = 0.001
    rise: float = 0.0
    new_factor: float = 10.0
    weight_decay: float = 0.0001
    evaluation: str = "whole"
    validate_every: int = 1
    precision: str = "float32"
    seed: int = 0
    warmup: float = 1.0
    collect: float = 1.0
    ramp_start: float | None = None
    extrapolate_threshold: bool = False
    recluster_every: float | None = None
    min_rows: int = 0
    max_collect: float | None = None
    feature_dim: int = 256
    head: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for name, value in vars(self).items():
            if name not in ("head", *LABELS):
                _require_kind(name, value, kinds[name])
            if name in CHOICES and value not in CHOICES[name]:
                raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}, found {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, found {value}")
            if name in LEAST and value is not None and value < LEAST[name]:
                raise ValueError(f"{name}: expected at least {LEAST[name]}, found {value}")
        self._read_labels()
        if self.size is None and self.data != "folder":
            raise ValueError(f"size: expected a number for {self.data}; only that of a folder can be left open")
        if not isinstance(self.head, Mapping):
            raise ValueError(f"head: expected fields of BRPGConfig, found {self.head!r}")
        with as_value_errors():
            if self.class_share is not None:
                require_number("class_share", self.class_share, 0.0, 1.0, open_low=True)
            expected = f"one of {', '.join(KINDS)}, or None"
            require(self.second_opinion in (None, *KINDS), "second_opinion", expected, self.second_opinion)
            for field in ("warmup", "collect"):
                require_number(field, getattr(self, field), 0.0, 1e12)
            learns_from = self.warmup + self.collect
            require(learns_from <= self.epochs, "epochs", f"at least warmup + collect ({learns_from:g})", self.epochs)
            _ = self.brpg, self.schedule(self.epoch_steps or USUAL_EPOCH)

    def _read_labels(self) -> None:
        """Bring the settings that describe label images into their plain form."""
        for name, read in LABELS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, read(getattr(self, name)))
        if self.mask_values is not None and self.palette is not None:
            raise ValueError("palette: expected none beside mask_values: label images hold values or colors")
        known = {
            "class_names": None if self.class_names is None else len(self.class_names),
            "palette": None if self.palette is None else Encoding.of_palette(self.palette).num_classes,
            "mask_values": None if self.mask_values is None else Encoding.of_values(self.mask_values).num_classes,
            "num_classes": self.num_classes,
        }
        told = {name: number for name, number in known.items() if number is not None}
        if len(set(told.values())) > 1:
            found = " and ".join(f"{number} by {name}" for name, number in told.items())
            raise ValueError(f"num_classes: expected one number of classes, found {found}")

    @property
    def encoding(self) -> Encoding | None:
        """What the values of the label images mean; None where they are class indices."""
        if self.palette is not None:
            return Encoding.of_palette(self.palette)
        return None if self.mask_values is None else Encoding.of_values(self.mask_values)

    @property
    def crop(self) -> int:
        """Side of the crops.

        Raises:
            ValueError: It is left open; see :meth:`settled`.
        """
        if self.size is None:
            raise ValueError("size: left open until the images are known")
        return self.size

    def settled(self) -> Recipe:
        """The recipe with what is left open for the images to decide: classes and their names, and sizes.

        Raises:
            ValueError: They do not tell, or contradict the recipe; the message says what.
        """
        if self.data != "folder" or self.root is None or not Path(self.root).expanduser().is_dir():
            return self
        root, encoding = Path(self.root).expanduser(), self.encoding
        names = self.class_names or (encoding.names if encoding else ()) or class_names_in(root) or None
        count = self.num_classes or (len(names) if names else None) or (encoding.num_classes if encoding else None)
        if count is None:
            raise ValueError(
                f"folder needs num_classes (--num-classes), or names in {root / CLASSES}; "
                f"brpg check-data {root} tells what the masks hold"
            )
        if names and len(names) != count:
            raise ValueError(f"{root / CLASSES}: expected {count} names, found {len(names)}")
        found = replace(self, num_classes=count, class_names=names)
        if self.size is not None:
            return found
        size, short_side = fitting_size(root, self.short_side)
        return replace(found, size=size, short_side=short_side)

    @property
    def brpg(self) -> BRPGConfig:
        """The head's hyper-parameters."""
        return config_from(self.head, prefix="head.")

    @property
    def window(self) -> int | None:
        """Side of the windows that are evaluated; None where whole images are."""
        return self.crop if self.evaluation == "sliding" else None

    def schedule(self, epoch_iterations: int) -> Schedule:
        """The head's phases, with epochs of so many iterations."""
        return Schedule.from_epochs(
            iters_per_epoch=epoch_iterations,
            warmup=self.warmup,
            collect=self.collect,
            total=self.epochs,
            ramp_start=None if self.ramp_start is None else min(self.ramp_start, self.epochs),
            extrapolate_threshold=self.extrapolate_threshold,
            recluster_every=self.recluster_every,
            min_rows=self.min_rows,
            max_collect=self.max_collect,
        )

    def load_data(self) -> SegmentationData:
        """The dataset.

        Raises:
            ValueError: Something is missing or wrong; the message says what.
        """
        split = str(Path(self.splits) / self.split) if self.splits and self.split else self.split
        return open_data(
            self.data,
            root=self.root,
            split=split,
            num_classes=self.num_classes,
            size=self.crop if self.data == "digits" else 0,
            seed=self.seed,
            short_side=self.short_side,
            all_labels=self.all_labels,
            class_names=self.class_names,
            encoding=self.encoding,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and checkpoints."""
        return asdict(self)


def _require_kind(name: str, value: object, kind: Any) -> None:
    allowed = get_args(kind) or (kind,)
    if float in allowed:
        allowed += (int,)
    fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))  # Python takes True for 1
    if not fits:
        names = " or ".join("null" if a is type(None) else a.__name__ for a in get_args(kind) or (kind,))
        advice = " (YAML reads 1e-3 as text: write 0.001)" if float in allowed and isinstance(value, str) else ""
        raise ValueError(f"{name}: expected {names}, found {value!r}{advice}")
