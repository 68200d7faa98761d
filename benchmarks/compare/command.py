"""``brpg compare``: does it help? Trainings without and with the head, paired, with intervals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from brpg_lib.benchmarks.compare import analysis, inputs, report, words
from brpg_lib.benchmarks.compare.bootstrap import RESAMPLES
from brpg_lib.benchmarks.compare.pairing import compare
from brpg_lib.benchmarks.compare.result_files import REPORT
from brpg_lib.benchmarks.compare.runs import in_percent
from brpg_lib.benchmarks.compare.statistics import LEVEL
from brpg_lib.files import write_atomically

MOST_TOLD = 4
"""Comparisons whose classes are shown in the terminal; the page has all."""

DESCRIPTION = """\
Does it help? Pairs trainings without and with the head that share seed, setting and every choice but the
head's, and tells the mean difference, its interval, each class, and how many more seeds a decision needs.

  brpg compare WITHOUT WITH    two folders of result files (of brpg train, or of the accuracy benchmark), two CSV
                               files, or two folders or files of confusion matrices (.npz: confusion
                               (images, C, C), rows: truth; optional: images, class_names)
  brpg compare RESULTS         one folder with several variants, or a CSV file with the columns seed, variant and
                               a score; optional: setting, further scores, iou:CLASS
"""
STATUS = "exit status: 0 for success, whatever the verdict; 2 for wrong usage or data that cannot be compared"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="brpg compare",
        description=DESCRIPTION,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("places", nargs="+", type=Path, metavar="PLACE", help="one or two folders or files, as above")
    p.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: 'no head')")
    p.add_argument("--allow-unpaired", action="store_true",
                   help="leave out trainings without partner, and list them (default: refuse)")  # fmt: skip
    p.add_argument("--level", type=float, default=LEVEL, help="level of the intervals (default: %(default)s)")
    p.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N",
                   help="test sets that the bootstrap over images draws (default: %(default)s)")  # fmt: skip
    p.add_argument("--bootstrap-seed", type=int, default=0, metavar="N", help="of its draws (default: %(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR",
                   help="where the page and its pictures go (default: %(default)s)")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too (default: nowhere)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Compares.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or data that cannot be compared.
    """
    arguments = parser().parse_args(argv)
    try:
        _require_usage(arguments)
        findings, notes = find(arguments)
        report.write(findings, notes, arguments.out)
        if arguments.json is not None:
            found = {"made_by": REPORT, "notes": notes, "comparisons": [analysis.as_json(f) for f in findings]}
            write_atomically(json.dumps(found, indent=2, allow_nan=False) + "\n", arguments.json)
    except (ValueError, OSError) as error:
        print(f"brpg compare: {error}", file=sys.stderr)
        return 2
    show(findings, notes, arguments.out / report.PAGE, Console())
    return 0


def _require_usage(arguments: argparse.Namespace) -> None:
    if len(arguments.places) > 2:
        raise ValueError(f"expected one or two folders or files, found {len(arguments.places)}")
    if not 0.5 <= arguments.level < 1:
        raise ValueError(f"--level: expected a number in [0.5, 1), found {arguments.level}")
    if arguments.resamples < 100:
        raise ValueError(f"--resamples: expected at least 100, found {arguments.resamples}")
    if arguments.bootstrap_seed < 0:
        raise ValueError(f"--bootstrap-seed: expected at least 0, found {arguments.bootstrap_seed}")


def find(arguments: argparse.Namespace) -> tuple[list[analysis.Finding], list[str]]:
    """All findings, and notes on all of them.

    Raises:
        ValueError: Something cannot be read or compared.
    """
    before, after = inputs.read(arguments.places, arguments.baseline)
    runs, notes = in_percent([*before, *after])
    comparisons, left_out = compare(runs[: len(before)], runs[len(before) :], arguments.allow_unpaired)
    notes += left_out
    options = analysis.Options(arguments.level, arguments.resamples, arguments.bootstrap_seed)
    findings = [analysis.analyse(comparison, options) for comparison in comparisons]
    if len(findings) > 1:
        notes.append(words.together(findings, options.level))
    return findings, notes


def show(findings: Sequence[analysis.Finding], notes: Sequence[str], page: Path, console: Console) -> None:
    """In the terminal, with the sentences last, where they are seen; of many comparisons the overview only."""
    told = len(findings) <= MOST_TOLD
    for finding in findings if told else []:
        if analysis.ordered(finding):
            console.print(report.classes(finding, report.MOST_CLASSES).rich())
    for table in report.overviews(findings)[: None if told else 1]:
        console.print(table.rich())
    for finding in findings if told else []:
        first, *rest = report.sentences(finding)
        console.print(Text.assemble(f"{finding.comparison.name}: ", (first, "bold")))
        for sentence in rest:
            console.print(Text(f"  {sentence}"))
    for note in notes:
        console.print(Text(note))
    console.print(Text(f"page: {page}"))


if __name__ == "__main__":
    sys.exit(main())
