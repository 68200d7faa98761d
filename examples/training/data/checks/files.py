"""Files that are damaged, missing, alone, or of another size."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from brpg_lib.examples.training.data.checks.findings import Findings, Problem, few
from brpg_lib.examples.training.data.checks.inventory import affix_of

PLAIN_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr")
"""Pillow's names for images of 8 bits per channel or less."""


def judge_files(found: Findings) -> None:
    """Files that are damaged, missing, alone, or of another size."""
    files, problems = found.files, found.problems
    if not files.images:
        problems.append(Problem("layout", "no images; those in directories of their own are not looked for"))
    if not files.masks:
        kinds = sorted({path.suffix for path in files.others})
        held = f"; found {len(files.others)} files of {', '.join(kinds)}, expected .png" if kinds else ""
        problems.append(Problem("layout", f"no masks, one PNG with the name of each labeled image{held}"))
    faults = [fault for seen in found.seen.values() for fault in seen.faults]
    if faults:
        problems.append(Problem("unreadable", f"{_files(len(faults))} cannot be read", tuple(faults)))
        bad = [_file_of(found, fault) for fault in faults]
        found.commands += _away(found.root, bad)
    if files.same_name:
        same = tuple(str(path) for path in files.same_name)
        problems.append(
            Problem("names", f"{_files(len(same))} have the name of another image, and are never used", same)
        )
    affix = affix_of(files)
    if affix is not None:
        before, after = affix
        problems.append(
            Problem("names", f"masks are named {before}IMAGE{after}.png; expected IMAGE.png, the name of their image")
        )
        folder = next(iter(files.masks.values())).parent
        rename = f'for f in {before}*{after}.png; do g="${{f#{before}}}"; mv "$f" "${{g%{after}.png}}.png"; done'
        found.commands += [f"(cd {shlex.quote(str(folder))} && {rename})"]
    elif files.masks:
        lone = [str(path) for name, path in files.masks.items() if name not in files.images]
        if lone:
            found.notices.append(f"masks without an image, never used: {len(lone)} ({few(lone)})")
        bare = [str(path) for name, path in files.images.items() if name not in files.masks]
        if bare:
            found.notices.append(f"images without a mask, good as unlabeled ones: {len(bare)} ({few(bare)})")
    _judge_sizes(found)


def _judge_sizes(found: Findings) -> None:
    wrong, deep = [], []
    for seen in found.seen.values():
        if seen.size is None:
            continue
        if seen.mode not in PLAIN_MODES:
            deep.append(f"{found.files.images[seen.name]}: mode {seen.mode}")
        if seen.mask is not None and seen.mask.size != seen.size:
            why = ", the image is turned by its EXIF orientation" if seen.turned else ""
            (width, height), (w, h) = seen.size, seen.mask.size
            wrong.append(f"{found.files.masks[seen.name]}: {w}x{h}, its image {width}x{height}{why}")
    if wrong:
        found.problems.append(Problem("size", f"{_files(len(wrong))} have another size than their image", tuple(wrong)))
        found.commands += _away(found.root, [Path(text.split(": ")[0]) for text in wrong])
    turned = [str(found.files.images[seen.name]) for seen in found.seen.values() if seen.turned]
    if turned:
        found.notices.append(
            f"images that viewers turn by their EXIF orientation: {len(turned)} ({few(turned)}); they are read as they "
            "are stored, and a mask that was drawn on the turned image does not fit"
        )
    if deep:
        text = f"{_files(len(deep))} have more than 8 bits per channel, which would be cut off: save them with 8"
        found.problems.append(Problem("mode", text, tuple(deep)))


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _file_of(found: Findings, fault: str) -> Path:
    """Which file a reading error is about."""
    paths = [*found.files.images.values(), *found.files.masks.values()]
    return next(path for path in paths if fault.startswith(f"{path}: "))


def _away(root: Path, paths: Sequence[Path]) -> list[str]:
    """Commands that put files where nobody looks for images."""
    said = []
    for folder in dict.fromkeys(path.parent for path in paths):
        aside = root / "set_aside" / folder.name
        moved = [str(path) for path in paths if path.parent == folder]
        said.append(f"mkdir -p {shlex.quote(str(aside))} && {shlex.join(['mv', *moved, str(aside)])}")
    return said
