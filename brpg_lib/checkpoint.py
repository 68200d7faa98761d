"""What a head's checkpoint says of the head that wrote it, and which heads may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brpg_lib.notices import warn
from brpg_lib.validation import require

VERSION = 3
"""Of the state dict. 1 had no ``idle``, 2 no ``limits.values``."""
OLDEST = 1
SHAPING = (
    "num_classes",
    "feature_dim",
    "config.num_prototypes",
    "config.split_fraction",
    "config.split_increment",
    "config.separate_confidence",
    "config.queue_size",
    "config.rare_class_fallback",
)
"""Settings that the sizes of the state depend on. The others can be changed in a training that goes on."""
BEFORE: dict[str, Any] = {"config.point_balance": 0.0, "config.pseudo_label_share": None}
"""What the library did before it had a setting, which older checkpoints do not mention."""
PROGRESS = ("version", "iteration", "seed")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = value.items() if isinstance(value, dict) else ()
        found.update({f"{name}.{key}": inner for key, inner in nested} or {name: value})
    return found


def require_loadable(own: Mapping[str, Any], saved: Mapping[str, Any], strict: bool) -> None:
    """Require that a head can go on from the checkpoint of another one.

    Args:
        own: Identity of the head that loads.
        saved: What the checkpoint says of the head that wrote it.
        strict: Whether all settings have to be the same, or only those that sizes depend on.

    Raises:
        ValueError: It cannot; the message names every difference.
    """
    version = saved.get("version")
    known = isinstance(version, int) and OLDEST <= version <= VERSION
    advice = "upgrade brpg-lib" if isinstance(version, int) and version > VERSION else "it is no state of a head"
    require(known, "state_dict", f"a state of version {OLDEST} to {VERSION}", f"version {version!r}; {advice}")
    mine, theirs = flat(own), BEFORE | flat(saved)
    differing = {
        name: f"{name} is {theirs.get(name)!r}, here {mine.get(name)!r}"
        for name in mine | theirs
        if name not in PROGRESS and mine.get(name) != theirs.get(name)
    }
    shaping = [text for name, text in differing.items() if name in SHAPING]
    text = "; ".join(differing.values())
    if strict or shaping:
        hint = "" if shaping else "; head.load_state_dict(..., strict=False) goes on with what is set here"
        require(not differing, "state_dict", "the state of a head like this one", text + hint)
    elif differing:
        warn(f"going on from the state of a head with other settings: {text}")
