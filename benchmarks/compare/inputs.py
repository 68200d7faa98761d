"""Reads the trainings that the command line names: folders, single files, one or two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brpg_lib.benchmarks.compare.count_files import read_counts
from brpg_lib.benchmarks.compare.csv_files import read_csv
from brpg_lib.benchmarks.compare.result_files import read_result
from brpg_lib.benchmarks.compare.runs import REFERENCES, WITH, WITHOUT, Run

RESULTS, TABLE, COUNTS = ".json", ".csv", ".npz"
KINDS = f"{RESULTS} (results), {TABLE} (a row per training: seed, variant, score) or {COUNTS} (confusion matrices)"


def read(paths: Sequence[Path], baseline: str | None) -> tuple[list[Run], list[Run]]:
    """All trainings.

    Args:
        paths: One place with all variants, or two: without the head, with it.
        baseline: Name of the variant without head; None for ``"no head"``, or for what the first of two places holds.

    Returns:
        Those of the baseline, and the others.

    Raises:
        ValueError: Something is missing or wrong.
    """
    if len(paths) == 1:
        return _of_one(paths[0], WITHOUT if baseline is None else baseline)
    if paths[0].resolve() == paths[1].resolve():
        raise ValueError(f"{paths[1]}: expected two different places, found the same one twice")
    before, after = (_read(path, variant) for path, variant in zip(paths, (WITHOUT, WITH), strict=True))
    if baseline is not None and baseline in {run.variant for run in before}:
        before = [run for run in before if run.variant == baseline]
    variants = _variants(before)
    if len(variants) > 1:
        raise ValueError(
            f"{paths[0]}: expected trainings of one variant, found {', '.join(map(repr, variants))}; "
            "--baseline chooses one of them"
        )
    if baseline is not None and variants != [baseline]:
        raise ValueError(f"{paths[0]}: expected the variant {baseline!r} (--baseline), found {variants[0]!r}")
    again = [run for run in after if run.variant == variants[0]]
    if again and len(again) < len(after):
        raise ValueError(
            f"{again[0].source}: expected trainings besides {variants[0]!r} in the second place, found one"
        )
    if again:  # both places call it the same: two versions of the head, or a check that nothing differs
        before = [replace(run, variant=f"{run.variant} ({paths[0]})") for run in before]
        after = [replace(run, variant=f"{run.variant} ({paths[1]})") for run in after]
    return before, after


def _of_one(path: Path, baseline: str) -> tuple[list[Run], list[Run]]:
    runs = _read(path, None)
    before = [run for run in runs if run.variant == baseline]
    after = [run for run in runs if run.variant not in (baseline, *REFERENCES)]
    if not before or not after:
        expected = f"the variant {baseline!r} to compare with" if not before else f"variants besides {baseline!r}"
        raise ValueError(
            f"{path}: expected {expected}, found {', '.join(map(repr, _variants(runs)))}; --baseline chooses a variant "
            "of these, and a second place holds other trainings"
        )
    return before, after


def _variants(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.variant for run in runs))


def _read(path: Path, side: str | None) -> list[Run]:
    """The trainings of one place; ``side`` names the variant where files do not, None if there is only one place."""
    if not path.exists():
        raise ValueError(f"{path}: expected a folder or a file, found nothing")
    files = _files(path) if path.is_dir() else [path]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{path}: expected files of one kind, found {' and '.join(kinds)}")
    if kinds == [TABLE]:
        return [run for file in files for run in read_csv(file, side)]
    if kinds == [COUNTS]:
        if side is None:
            raise ValueError(f"{path}: expected two places with {COUNTS} files (without the head, with it), found one")
        return [read_counts(f, side, str(f.relative_to(path).with_suffix("")) if path.is_dir() else "0") for f in files]
    if kinds == [RESULTS]:
        runs = [run for run in map(read_result, files) if run is not None]
        if runs:
            return runs
    raise ValueError(f"{path}: expected {KINDS}, found {path.suffix or 'a file without ending'}")


def _files(folder: Path) -> list[Path]:
    """All that can be read, also in folders below."""
    files = [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix.lower() in {RESULTS, TABLE, COUNTS}
    ]
    if not files:
        inside = sorted(file.name for file in folder.iterdir())[:5]
        raise ValueError(f"{folder}: expected {KINDS}, found {', '.join(inside) or 'an empty folder'}")
    return files
