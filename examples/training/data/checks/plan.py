"""What would be trained, and what to type."""

from __future__ import annotations

import shlex
import statistics

from brpg_lib.examples.training.data.checks.findings import Findings, Given
from brpg_lib.examples.training.data.folder import class_names_in, crop_for
from brpg_lib.examples.training.data.layouts import LAYOUTS

PRESETS = {
    "folder": "folder/small",
    "camvid": "few_labels/camvid",
    "voc": "voc/classic_92",
    "voc_blended": "voc/blended_662",
    "cityscapes": "cityscapes/labeled_186",
    "coco": "coco/one_in_128",
}


def plan(found: Findings, given: Given, parts: dict[str, list[str]]) -> None:
    """What would be trained, and what to type."""
    assert found.layout is not None
    root = str(found.root)
    if found.layout == "pets":
        found.commands.append(shlex.join(["brpg", "demo", "--data", "pets", "--root", root]))
        return
    options = found.suggestion.options if found.suggestion else given.options
    if not options and found.layout == "folder" and not class_names_in(found.root):
        return
    if options and options[0] == "--num-classes" and class_names_in(found.root):
        options = []
    command = ["brpg", "train", PRESETS[found.layout], "--root", root, *options]
    if found.layout in LAYOUTS:
        command += ["--splits", "SPLITS"] if given.split is None else ["--set", f"split={given.split}"]
    if given.seed and found.layout == "folder":
        command += ["--set", f"seed={given.seed}"]
    found.commands.append(shlex.join(command))
    found.training = {"preset": PRESETS[found.layout], **{which: len(names) for which, names in parts.items()}}
    sizes = [min(seen.size) for seen in found.seen.values() if seen.size is not None]
    if found.layout == "folder":
        crop, short_side = crop_for(round(statistics.median(sizes)))
        found.training |= {"num_classes": len(found.class_names), "crop": crop, "short_side": short_side}
