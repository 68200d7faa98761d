"""The ``brpg:`` section of a script's yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from brpg_lib.schedule import SMALL_DATA
from brpg_lib.settings import CONFIG_KEYS, OWN_KEYS, PRESETS, SCHEDULE_KEYS, HeadSettings
from brpg_lib.validation import require, require_known

PREFIX = "brpg."


class Official(NamedTuple):
    """Official settings for a dataset: the preset of the hyper-parameters, and the epochs of warm-up and collect."""

    preset: str
    warmup: int
    collect: int

    def __str__(self) -> str:
        weight = PRESETS[self.preset]().loss_weight
        return f"preset {self.preset}, loss_weight {weight:g}, warmup {self.warmup}, collect {self.collect}"


OFFICIAL = {"cityscapes": Official("cityscapes", warmup=3, collect=3), "coco": Official("coco", warmup=1, collect=1)}
DEFAULT = Official("pascal", warmup=1, collect=1)
FEW_LABELS = "small_data"
"""The preset whose lengths are shares of the training, see :meth:`brpg_lib.Schedule.small_data`."""


def read_section(
    section: object, *, dataset: str, epochs: float, iters_per_epoch: int, feature_dim: int, ignore_index: int = 255
) -> HeadSettings | None:
    """Read a section; lengths in it count epochs (fractions allowed).

    Args:
        section: What the yaml holds under ``brpg``: a mapping, or ``None``.
        dataset: The script's name of the dataset; it chooses preset and lengths unless the section does.
        epochs: Epochs of the training.
        iters_per_epoch: Iterations of one epoch.
        feature_dim: Channels unless the section says otherwise.
        ignore_index: The script's label of pixels without a class.

    Returns:
        The settings; ``None`` if the section says ``enabled: false``.

    Raises:
        ValueError: A key is unknown or a value out of range; the message names it.
    """
    expected = "a section of keys and values, such as {enabled: false}"
    require(section is None or isinstance(section, Mapping), "brpg", expected, repr(section))
    given = dict(section) if isinstance(section, Mapping) else {}
    enabled = given.pop("enabled", True)
    require(isinstance(enabled, bool), "brpg.enabled", "true or false", repr(enabled))
    if not enabled:
        require_known(PREFIX, given, (*OWN_KEYS, *CONFIG_KEYS, *SCHEDULE_KEYS))
        return None
    official = next((official for name, official in OFFICIAL.items() if dataset.startswith(name)), DEFAULT)
    lengths: dict[str, float] = {"warmup": official.warmup, "collect": official.collect}
    if given.get("preset") == FEW_LABELS:
        lengths = {name: share * epochs for name, share in SMALL_DATA.items()}
    return HeadSettings.from_mapping(
        given,
        iters_per_epoch=iters_per_epoch,
        feature_dim=feature_dim,
        lengths=lengths | {"total": epochs},
        preset=official.preset,
        prefix=PREFIX,
        ignore_index=ignore_index,
    )


def in_words(*, from_file: bool) -> list[str]:
    """Where a patched script has its settings, and what holds without any.

    Args:
        from_file: Whether they come from a file of their own, since the script reads no yaml.
    """
    place, unit = ("a file, --brpg FILE.yaml", "thousands of iterations") if from_file else ("your yaml", "epochs")
    others = [f"datasets named {name}...: {official}" for name, official in OFFICIAL.items()]
    return [
        f"settings of the head: a section brpg in {place}; lengths count {unit}. Without it, the published ones:",
        f"  {DEFAULT}" + "".join(f"; {other}" for other in ([] if from_file else others)),
        f"  tens to hundreds of labeled images: brpg: {{preset: {FEW_LABELS}}}, with shares of the training",
    ]
