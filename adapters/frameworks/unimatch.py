"""UniMatch: no teacher, one DeepLabv3+ without a representation branch, and one or two strong views."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from ..analysis.values import dotted
from ..editing.edit import Edit
from ..patching.edits import replaced
from ..patching.family import Family
from ..patching.found import Found
from ..patching.framework import Fix
from ..patching.lines import ENDING, Lines
from ..roles.settings import options

IMPORTS = """
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

PLUGIN = """
brpg = Plugin($cfg.get('brpg'), dataset=$cfg['dataset'], num_classes=$cfg['nclass'], feature_dim=256,
              epochs=$epochs, iters_per_epoch=$length$logger)$move
brpg.tap($model$teacher, features='fuse', logits='classifier')
brpg.add_projection($net.classifier.in_channels, $optimizer.param_groups[$group])
"""

UNIMATCH_STEP = """
if brpg.enabled:
    # the first pass holds x, u_w and their perturbed copies, the second u_s1 and u_s2
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:$n_l], feat_s)
    u_w = slice($n_l, $n_l + $n_w)
    $ignored
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:$n_l], labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            **brpg.weak_view(feat_w[u_w], logits_w[u_w]$valid)),
        iteration=$iteration)
"""

FIXMATCH_STEP = """
if brpg.enabled:
    # the first pass holds x and u_w, the second u_s
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:$n_l], feat_s)
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:$n_l], labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            **brpg.weak_view(feat_w[$n_l:], logits_w[$n_l:]$valid)),
        iteration=$iteration)
"""


def record(found: Found) -> str:
    """Writes a validation's mIoU, and the IoU of each class where the script has it."""
    names = found.surroundings.names
    scores = names["score"]
    if "others" in names and "CLASSES" in found.around.env:
        scores += f", dict(zip(CLASSES[{names['cfg']}['dataset']], {names['others']}))"
    return record_call(found, scores)


def record_call(found: Found, scores: str) -> str:
    """The call that writes the scores of a validation, among the settings that tell trainings apart."""
    names, known = found.surroundings.names, options(found.around)
    args = names.get("args", "")
    folder = (
        f"{args}.save_path" if args and "save_path" in known else f"os.path.dirname({names.get('saved', repr('.'))})"
    )
    split = f",\n            split={args}.labeled_id_path" if args and "labeled_id_path" in known else ""
    return f"\nbrpg.record({folder}, {found.around.epoch_name()}, {scores}, settings={names['cfg']}{split})\n"


def short_epochs(found: Found) -> Iterator[Edit]:
    """Scripts that log every eighth of an epoch divide by zero in shorter ones."""
    for node in ast.walk(found.tree):
        period = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) else None
        if isinstance(period, ast.BinOp) and isinstance(period.op, ast.FloorDiv) and _is_length(period.left):
            yield replaced(period, f"max(1, {ast.unparse(period)})")


def _is_length(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) == "len"


SHORT_EPOCHS = Fix(summary="ZeroDivisionError in epochs of fewer than 8 iterations", edits=short_epochs)
PLACES = "--config=configs/{data}.yaml --labeled-id-path {lists}/labeled.txt --unlabeled-id-path {lists}/unlabeled.txt"


def arguments(data: str, split: str, save: str, folder: str = "splits") -> str:
    """An example of a script's arguments: a data set, one of its splits in a folder, and where to save."""
    return f"{PLACES.format(data=data, lists=f'{folder}/{data}/{split}')} --save-path exp/{data}/{save}"


LINES = {
    "unimatch.py": Lines(passes=("x w +", "s s"), step=UNIMATCH_STEP),
    "fixmatch.py": Lines(passes=("x w", "s"), step=FIXMATCH_STEP),
}


UNIMATCH = Family(
    name="unimatch",
    repository="https://github.com/LiheYoung/UniMatch",
    commits=("0324f3d",),
    scripts=dict.fromkeys(LINES, ()),
    lines=LINES,
    start={script: arguments("pascal", "732", f"{Path(script).stem}_brpg/r101/732") for script in LINES},
    network="model.semseg.deeplabv3plus",
    layers=("fuse", "classifier"),
    imports=IMPORTS,
    plugin=PLUGIN,
    ending=ENDING,
    record=record,
    fixes={"short-epochs": SHORT_EPOCHS},
)
