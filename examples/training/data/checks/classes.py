"""Classes of the images that would be trained and tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.checks.findings import Findings, Problem
from brpg_lib.examples.training.data.encoding import UNKNOWN, Encoding
from brpg_lib.examples.training.data.judgement import absent, fault_in_classes
from brpg_lib.examples.training.data.masks import Tally


def judge_classes(found: Findings, parts: dict[str, list[str]]) -> None:
    """The classes of what would be trained and tested on, or of all masks."""
    if not found.class_names:
        return
    groups = {which: [n for n in parts[which] if n in found.seen] for which in ("labeled", "test")} if parts else {}
    found.tallies = {which: tally_of(found, names) for which, names in (groups or {"all": found.pairs}).items()}
    if "labeled" not in found.tallies:
        return
    labeled, test = found.tallies["labeled"], found.tallies["test"]
    if not (labeled.class_pixels[UNKNOWN] or test.class_pixels[UNKNOWN] or labeled.colored or test.colored):
        fault = fault_in_classes(found.root, labeled, test, found.class_names, found.encoding)
        if fault is not None:
            found.problems.append(Problem("classes", fault))
    found.notices += absent(labeled, test, found.class_names, labeled.masks, test.masks)


def tally_of(found: Findings, names: Iterable[str]) -> Tally:
    """The label images of these names, counted by class."""
    counted = Tally()
    for name in names:
        mask = found.seen[name].mask
        if mask is None:
            continue
        path = found.files.masks[name]
        gray = not (isinstance(found.encoding, Encoding) and found.encoding.colors)
        values = (
            {value & 255: number for value, number in mask.pixels.items()} if mask.colored and gray else mask.pixels
        )
        known = np.array([list(values)], np.int64)
        decoded = known if found.encoding is None else found.encoding(known, path)
        classes: Counter[int] = Counter()
        for index, number in zip(decoded[0].tolist(), values.values(), strict=True):
            fits = index == IGNORE_INDEX or 0 <= index < len(found.class_names)
            classes[index if fits else UNKNOWN] += number
        counted.add(path, mask._replace(colored=False, pixels=values, classes=dict(classes)))
    return counted
