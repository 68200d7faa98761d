"""Results of trainings in JSON: of the accuracy benchmark, and of ``brpg train``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brpg_lib.benchmarks.compare.runs import SCORE_NAMES, WITH, WITHOUT, Run, number, number_or_none

HEAD_FIELDS = (
    *("head", "warmup", "collect", "ramp_start", "extrapolate_threshold", "recluster_every"),
    *("min_rows", "max_collect", "second_opinion"),
)
"""Settings that a training without head does not use."""
PLACES = ("root", "splits")
"""Where the data lies, which may be elsewhere on another machine."""
SCRIPT = "brpg patch"
"""Mark of what a patched script wrote."""
REPORT = "brpg compare"
"""Mark of our own results, which may lie beside those that they are of."""


def read_result(path: Path) -> Run | None:
    """A training from its file.

    Returns:
        None for a file that ``brpg compare --json`` wrote.

    Raises:
        ValueError: It holds no result, or something in it is wrong.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if isinstance(found, dict) and found.get("made_by") == REPORT:
        return None
    if isinstance(found, dict) and "settings" in found and "variant" in found:
        return _of_benchmark(path, found)
    if isinstance(found, dict) and "recipe" in found and "validations" in found:
        return _of_training(path, found)
    if isinstance(found, dict) and found.get("made_by") == SCRIPT:
        return _of_script(path, found)
    keys = ", ".join(list(found)[:6]) if isinstance(found, dict) else type(found).__name__
    raise ValueError(
        f"{path}: expected the result of a training (variant, settings, miou, ... as the accuracy benchmark writes "
        f"them, recipe, head, validations, ... as brpg train does, or what a patched script wrote), "
        f"found {keys or 'an empty object'}"
    )


def _of_benchmark(path: Path, found: dict[str, Any]) -> Run:
    names, values = _list(path, found, "class_names"), _list(path, found, "iou")
    if len(names) != len(values) or len(set(names)) != len(names):
        raise ValueError(
            f"{path}: iou: expected one number for each of {len(set(names))} different class_names, "
            f"found {len(values)} numbers and {len(names)} names"
        )
    settings = _mapping(path, found, "settings")
    return _run(path, str(found["variant"]), settings, found, dict(zip(names, values, strict=True)), found)


def _of_training(path: Path, found: dict[str, Any]) -> Run:
    last = _last_validation(path, found)
    recipe = {**_mapping(path, found, "recipe"), "processes": found.get("processes"), "device": found.get("device")}
    return _run(path, WITH if found.get("head") else WITHOUT, recipe, last, last["iou"], {})


def _of_script(path: Path, found: dict[str, Any]) -> Run:
    last = _last_validation(path, found)
    told = {"seed": found.get("seed"), "split": found.get("split"), "head": found.get("brpg", {})}
    settings = {**_mapping(path, found, "settings"), "epoch": last.get("epoch"), **told}
    return _run(path, WITH if found.get("head") else WITHOUT, settings, last, last["iou"], {})


def _last_validation(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Its scores count: the best one is the best by chance too."""
    validations = found.get("validations")
    if not isinstance(validations, list) or not validations:
        raise ValueError(f"{path}: validations: expected at least one, found none")
    last = validations[-1]
    if not isinstance(last, dict) or not isinstance(last.get("iou"), dict):
        raise ValueError(f"{path}: validations: expected miou, boundary_miou and iou by class name, found {last!r:.80}")
    return last


def _run(
    path: Path,
    variant: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, Any],
    classes: Mapping[str, Any],
    surroundings: Mapping[str, Any],
) -> Run:
    if "seed" not in settings:
        raise ValueError(f"{path}: settings: seed: expected a number, found nothing")
    apart = {*HEAD_FIELDS, *PLACES, "seed", "split"}
    # an earlier version did not know every setting that is left open now
    fixed = {name: value for name, value in settings.items() if name not in apart and value is not None}
    if isinstance(fixed.get("device"), str):
        fixed["device"] = fixed["device"].partition(":")[0]
    environment = surroundings.get("environment") or {}
    return Run(
        source=str(path),
        variant=variant,
        setting="" if settings.get("split") is None else str(settings["split"]),
        seed=str(settings["seed"]),
        scores={
            shown: number(scores.get(name), f"{path}: {name}")
            for name, shown in SCORE_NAMES.items()
            if name in scores or (name == "miou" and "dice" not in scores)
        },
        classes={str(name): number_or_none(value, f"{path}: iou of {name}") for name, value in classes.items()},
        fixed=fixed,
        head={name: settings[name] for name in HEAD_FIELDS if name in settings},
        surroundings={
            "device": environment.get("device"),
            "threads": environment.get("threads"),
            "torch": (environment.get("versions") or {}).get("torch"),
        },
    )


def _list(path: Path, found: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{path}: {name}: expected a list, found {'nothing' if value is None else repr(value)}")
    return value


def _mapping(path: Path, found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {name}: expected an object, found {value!r}")
    return value
