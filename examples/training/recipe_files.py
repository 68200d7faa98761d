"""Recipes as files: YAML, one of which may extend another."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from brpg_lib.examples.training.data.catalog import DATASETS
from brpg_lib.examples.training.data.encoding import palette_file
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.settings import CONFIG_KEYS
from brpg_lib.validation import as_value_errors

CONFIGS = Path(__file__).parent / "configs"
ALIASES = {"lr": "learning_rate"}
"""Names that fields are also given by."""
SYNONYMS = {
    "amp": "precision",
    "backbone": "network",
    "batch": "batch_size",
    "classes": "num_classes",
    "crop": "size",
    "crop_size": "size",
    "dataset": "data",
    "iterations": "epoch_steps",
    "method": "framework",
    "model": "network",
    "names": "class_names",
    "steps": "epoch_steps",
    "wd": "weight_decay",
}
"""What fields are called elsewhere, for the advice that an unknown one gets."""


def presets() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml"))


def read_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe.

    Args:
        name: Of a preset, such as ``"voc/classic_92"``, or path of a YAML file.
        changes: Fields to replace; ``"head.X"`` means field X of the head.

    Raises:
        ValueError: There is no such file, or something in it is wrong.
    """
    path = CONFIGS / f"{name}.yaml" if name in presets() else Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, presets(), n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else f"presets: {', '.join(presets())}"
        raise ValueError(f"{name}: no such preset or file; {advice}")
    found = _read(path)
    own = {key: value for key, value in (changes or {}).items() if not key.startswith("head.")}
    own_head = {key.removeprefix("head."): value for key, value in (changes or {}).items() if key not in own}
    found = {**found, **_canonical(own, Path("."), path)}
    if own_head:
        found["head"] = {**_mapping(found, path), **own_head}
    known = [entry.name for entry in fields(Recipe)]
    for key in found:
        if key not in known:
            raise ValueError(f"{path}: {key}: no such field{_advice(key, known)}")
    if "data" not in found:
        raise ValueError(f"{path}: data: missing; expected one of {', '.join(DATASETS)}")
    with as_value_errors(f"{path}: "):
        return Recipe(**found)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file over those of the one that it extends."""
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: extends itself")
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{seen[-1] if seen else path}: cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path}: expected NAME: VALUE lines, found {type(found).__name__}")
    found = _canonical(found, path.parent, path)
    if "extends" not in found:
        return found
    base = _read(path.parent / str(found.pop("extends")), (*seen, path))
    return {**base, **found, "head": {**_mapping(base, path), **_mapping(found, path)}}


def _canonical(found: Mapping[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """The fields under their own names, with the palette that a text file holds in its place."""
    named: dict[str, Any] = {}
    for key, value in found.items():
        name = ALIASES.get(key, key)
        if name in named:
            raise ValueError(f"{path}: {name}: given twice, once as {key}")
        named[name] = value
    given = named.get("palette")
    if isinstance(given, str) and "=" not in given:
        file = folder / Path(given).expanduser()
        if not file.is_file():
            raise ValueError(
                f"palette: expected a file, or colors such as 'road=#804080; car=#00008e', found {given!r}"
            )
        named["palette"] = palette_file(file)
    return named


def _advice(key: str, known: Sequence[str]) -> str:
    """What somebody may have meant by a name that no field has."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    meant = SYNONYMS.get(key) or (f"head.{key}" if key in CONFIG_KEYS else None) or (close[0] if close else None)
    return f"; did you mean {meant}?" if meant else ""


def _mapping(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of the head."""
    head = found.get("head", {})
    if not isinstance(head, dict):
        raise ValueError(f"{path}: head: expected fields of BRPGConfig, found {head!r}")
    return head
