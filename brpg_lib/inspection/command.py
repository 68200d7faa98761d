"""``brpg inspect``: what the head in a checkpoint has learned, and whether it is well."""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from brpg_lib.files import write_atomically, written_beside
from brpg_lib.inspection.findings import Findings, find
from brpg_lib.inspection.record import HeadRecord, chosen, read_heads
from brpg_lib.inspection.tables import everything

PICTURES = (".png", ".svg", ".pdf")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="brpg inspect",
        description="Show the prototype head in a checkpoint: of brpg train or demo, of a patched script (.brpg.pth), "
        "or any state dict that holds one. Nothing in the file is run.",
    )
    p.add_argument("checkpoint", type=Path, help="file to read")
    p.add_argument(
        "--head",
        metavar="PLACE",
        help="which head, where the file has several (default: the only one; several are listed)",
    )
    p.add_argument(
        "--names", type=Path, metavar="FILE", help="names of the classes, one a line (default: those in the file)"
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write a page (.html) or a picture (.png, .svg, .pdf) (default: neither)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects.

    Returns:
        Exit status: 0 for success, 2 for wrong usage, a file without a head, or a missing package.
    """
    arguments = parser().parse_args(argv)
    try:
        head = _head(arguments)
        found = find(head)
        if arguments.out is not None:
            _write(arguments.out, head, found, f"{arguments.checkpoint.name}: {head.place}".rstrip(": "))
        console = Console()
        for part in everything(head, found):
            console.print(part)
        if arguments.out is not None:
            print(f"written: {arguments.out}")
    except ModuleNotFoundError as error:
        print(f"brpg inspect needs {error.name} for this: pip install 'brpg-lib[inspect]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"brpg inspect: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"brpg inspect: {error}", file=sys.stderr)
        return 2
    return 0


def _head(arguments: argparse.Namespace) -> HeadRecord:
    out: Path | None = arguments.out
    if out is not None and out.suffix.lower() not in (".html", *PICTURES):
        raise ValueError(f"--out: expected a name that ends in .html, {', '.join(PICTURES)}, found {out}")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"--out: no such directory: {out.absolute().parent}")
    heads = read_heads(arguments.checkpoint)
    if arguments.head is None and len(heads) > 1:
        raise ValueError(f"--head: expected one of {', '.join(repr(h.place) for h in heads)}; found several heads")
    head = chosen(heads, arguments.head, arguments.checkpoint)
    if arguments.names is None:
        return head
    names = tuple(line.strip() for line in arguments.names.read_text().splitlines() if line.strip())
    if len(names) != head.num_classes:
        raise ValueError(f"--names: expected {head.num_classes} lines, found {len(names)} in {arguments.names}")
    return replace(head, names=names)


def _write(out: Path, head: HeadRecord, found: Findings, title: str) -> None:
    from brpg_lib.inspection.picture import draw  # matplotlib is not needed without

    figure = draw(head, found, title)
    if out.suffix.lower() != ".html":
        kind = out.suffix.lower().removeprefix(".")
        written_beside(out, lambda file: figure.savefig(file, format=kind, dpi=110)).replace(out)
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    console = Console(record=True, file=io.StringIO(), width=140)
    for part in everything(head, found):
        console.print(part)
    title = html.escape(title)
    shown = (
        f'<h1 style="font-family: sans-serif">{title}</h1>\n<img style="max-width: 100%" src="data:image/png;base64,'
    )
    shown += f'{base64.b64encode(buffer.getvalue()).decode()}" alt="{title}">\n'
    write_atomically(console.export_html(inline_styles=True).replace("<body>", f"<body>\n{shown}", 1), out)


if __name__ == "__main__":
    sys.exit(main())
