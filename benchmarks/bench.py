"""``brpg bench``: all benchmarks, and a page that shows what they found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from brpg_lib.benchmarks import clustering, command, growth, plots, step, training_overhead
from brpg_lib.benchmarks.command import Result

BENCHMARKS = {"clustering": clustering, "step": step, "training_overhead": training_overhead, "growth": growth}


def bench_command(argv: Sequence[str]) -> int:
    """``brpg bench`` on the command line."""
    parser().parse_args(argv)  # before this starts anew
    command.with_quiet_threads()
    return main(argv)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser("brpg bench", __doc__)
    p.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="where to write (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything and write the page.

    Returns:
        Exit status: 0 for success, 2 for wrong usage, 130 for an interruption; the page then has what was measured.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        options = command.options_of(arguments)
    except ValueError as error:
        print(f"brpg bench: {error}", file=sys.stderr)
        return 2
    command.warn(console)
    results: dict[str, Result] = {}
    try:
        measure_all(options, arguments.out, console, results)
    except KeyboardInterrupt:
        left = ", ".join(name for name in BENCHMARKS if name not in results)
        print(f"brpg bench: interrupted before the end of {left}", file=sys.stderr)
    for name, result in results.items():
        for table in BENCHMARKS[name].tables(result):
            console.print(table.rich())
    if results:
        path = arguments.out / "benchmark.md"
        path.write_text(page(results))
        console.print(f"page: {path}")
    return 0 if len(results) == len(BENCHMARKS) else 130


def measure_all(options: command.Options, out: Path, console: Console, results: dict[str, Result]) -> None:
    """Measure one after the other; numbers and picture are written, and the result added, as soon as one is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<18}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as bar:
        tasks = {name: bar.add_task(name, total=1, start=False, now="") for name in BENCHMARKS}
        for name, benchmark in BENCHMARKS.items():
            task = tasks[name]
            bar.start_task(task)
            result = command.complete(benchmark, options, lambda text, task=task: bar.update(task, now=text))  # type: ignore[misc]
            bar.update(task, completed=1, now="")
            command.write(result, out / f"{name}.json")
            plots.draw(name, result, out / f"{name}.png")
            results[name] = result


def page(results: dict[str, Result]) -> str:
    """All tables and pictures in Markdown."""
    parts = ["# Benchmark", command.origin(next(iter(results.values())))]
    parts += [f"**Warning:** {text}" for text in command.warnings(next(iter(results.values()))["environment"])]
    for name, result in results.items():
        benchmark: ModuleType = BENCHMARKS[name]
        parts += [f"## {title(name)}", str(benchmark.__doc__), f"![{title(name)}]({name}.png)"]
        parts += [table.markdown().strip() for table in benchmark.tables(result)]
        parts.append(f"All numbers: [{name}.json]({name}.json)")
    return "\n\n".join(parts) + "\n"


def title(name: str) -> str:
    """A file name as a heading."""
    return name.replace("_", " ").capitalize()


if __name__ == "__main__":
    sys.exit(bench_command(sys.argv[1:]))
