"""CorrMatch: UniMatch with one strong view, and pseudo labels that spread along correlations. It never resumes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from ..editing.edit import Edit
from ..editing.edit import Replace as ReplaceAt
from ..patching.edits import at
from ..patching.found import Found
from ..patching.framework import Fix
from ..patching.lines import Lines
from ..roles.findings import Lacking, Missing
from .unimatch import UNIMATCH, arguments, record_call

STEP = """
if brpg.enabled:
    # the first pass holds x, u_w and their perturbed copies, the second u_s1
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:$n_l], feat_s)
    u_w = slice($n_l, $n_l + $n_w)
    # a label that has spread to a pixel is as sure as what CorrMatch trains with
    sure = $confidence.clamp(min=float($threshold))
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:$n_l], labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=torch.where($used, sure, $confidence),
            **brpg.weak_view(feat_w[u_w], logits_w[u_w]$valid)),
        iteration=$iteration)
"""
USED, THRESHOLD = "conf_fliter_u_w_without_cutmix", "thresh_global"


def spread(found: Found) -> dict[str, str]:
    """Slots of the pixels that labels have spread to, and of the threshold: known by their names."""
    env, line = found.step.descent.place.env, found.step.descent.place.statement.lineno
    for name, what in ((USED, "pixels that CorrMatch trains with"), (THRESHOLD, "threshold of its confidence")):
        if name not in env:
            raise Lacking(Missing(what, f"no name `{name}` where the loss goes backward", by_hand=f"{name} = ..."))
        found.findings.add(what, name, line, note="by its name")
    return {"used": USED, "threshold": THRESHOLD}


def record(found: Found) -> str:
    """Writes a validation's mIoU and the IoU of each class, which have numbers for names."""
    names = found.surroundings.names
    if "others" not in names:
        return record_call(found, names["score"])
    classes = f"{{f'class {{index}}': 100 * iou for index, iou in enumerate({names['others']})}}"
    return record_call(found, f"{names['score']}, {classes}")


def visible_devices(found: Found) -> Iterator[Edit]:
    """``os.environ.setdefault(...)`` in the place of an assignment."""
    for node in ast.walk(found.tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "os.environ['CUDA_VISIBLE_DEVICES']":
            code = f'os.environ.setdefault("CUDA_VISIBLE_DEVICES", {ast.unparse(node.value)})'
            yield ReplaceAt(anchor=ast.unparse(node), at=at(node), code=code)


SCRIPT = "corrmatch.py"
CORRMATCH = replace(
    UNIMATCH,
    name="corrmatch",
    repository="https://github.com/BBBBchan/CorrMatch",
    commits=("44f9f9e",),
    scripts={SCRIPT: ()},
    lines={SCRIPT: Lines(passes=("x w +", "s +"), step=STEP)},
    start={SCRIPT: arguments("pascal", "92", "92/corrmatch_brpg", folder="partitions")},
    marker="util.thresh_helper",
    slots=spread,
    record=record,
    resumes=False,
    fixes={
        "visible-devices": Fix(
            summary="it takes GPUs 0 and 1, whatever CUDA_VISIBLE_DEVICES says", edits=visible_devices
        )
    },
)
