"""U2PL: a mean teacher, and a representation branch that the head takes over from U2PL's contrastive loss."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis.values import Value, dotted
from ..analysis.views import names_of, plain
from ..editing.edit import Edit, Replace
from ..patching.edits import after, at, old_iterators, replaced
from ..patching.family import Family
from ..patching.found import Found
from ..patching.framework import Fix
from ..patching.lines import Lines, guard_of
from ..roles.findings import Lacking, Missing
from ..roles.settings import options
from ..roles.sight import text

IMPORTS = """
import brpg_lib.adapters.compat  # u2pl uses names that newer Pythons and torches refuse
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

PLUGIN = """
brpg = Plugin(
    $cfg.get("brpg"),
    dataset=$cfg["dataset"]["type"],
    num_classes=$cfg["net"]["num_classes"],
    feature_dim=256,
    epochs=$epochs,
    iters_per_epoch=$length,
    ignore_index=$cfg["dataset"]["ignore_label"]$logger_line,
)$move
"""

TEACHER = """
outs_u_teacher = $call
$target = outs_u_teacher["pred"]
"""

STEP = """
if brpg.enabled:
    n = len($images_l)
    labeled = LabeledBatch(features=$outs["rep"][:n], logits=$outs["pred"][:n], labels=$labels)
    unlabeled = None
    if $guard:
        unlabeled = UnlabeledBatch(
            features=$outs["rep"][n:],
            pseudo_labels=$pseudo,
            confidence=$confidence,
            weak_features=outs_u_teacher["rep"],
            weak_logits=outs_u_teacher["pred"],
        )
    $loss = $loss + brpg(labeled, unlabeled, iteration=$iteration)
"""


def record(found: Found) -> str:
    """Writes a validation's scores."""
    names = found.surroundings.names
    cfg, args = names["cfg"], names.get("args", "")
    seed = f"\n    seed={args}.seed," if args and "seed" in options(found.around) else ""
    return f"""
brpg.record(
    {cfg}["saver"]["snapshot_dir"],
    {found.around.epoch_name()},
    {names["score"]},
    settings={cfg},
    split={cfg}["dataset"].get("train", {{}}).get("data_list"),{seed}
)
"""


def outputs(found: Found) -> dict[str, str]:
    """Slots of the student's outputs and of the condition under which there are pseudo labels."""
    place, step = found.step.descent.place, found.step
    trained = {id(one.value) for one in step.passes}
    outs = [name for name, held in place.env.items() if _passes(held) and {id(one) for one in _passes(held)} <= trained]
    outs = [name for name in outs if len(_passes(place.env[name])) == len(trained)] or outs
    if not outs:
        raise Lacking(
            Missing(
                "outputs",
                f"no name holds all outputs of `{step.student}` where the loss goes backward",
                by_hand="outs = model(images)",
            )
        )
    images = names_of(step.labeled.images[0], place.env) if step.labeled is not None else []
    guard = guard_of(place, step.strong[0].labels)
    found.findings.add("outputs", outs[0], place.statement.lineno, note="representations in `rep`, logits in `pred`")
    return {"outs": outs[0], "images_l": images[0], "guard": guard or "True"}


def _passes(value: Value) -> list[Value]:
    value = plain(value)
    if value.op == "either":
        inner = [_passes(arg) for arg in value.args]
        return [one for found in inner for one in found] if all(inner) else []
    return [value] if value.op == "forward" else []


def extras(found: Found) -> Iterator[Edit]:
    """The teacher's whole output, U2PL's own contrastive loss, and what newer Pythons refuse."""
    forward = next(inner for inner in found.step.strong[0].labels if inner.op == "forward")
    place = next(place for value, place in found.flow.calls if value is forward)
    statement = place.statement
    if place.function != found.step.descent.place.function:
        reason = f"`{ast.unparse(statement)}` is in {place.function}(), whose names the step does not have"
        raise Lacking(Missing("teacher", reason, [(statement.lineno, ast.unparse(statement))]))
    if not (
        isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Subscript)
        and statement.value.value is forward.node
    ):
        near = [(statement.lineno, ast.unparse(statement))]
        raise Lacking(Missing("teacher", f'expected `{text(forward)}["pred"]` assigned to a name', near))
    target, call = ast.unparse(statement.targets[0]), ast.unparse(statement.value.value)
    found.findings.add("weak view", call, statement.lineno, note="the teacher's pass")
    code = TEACHER.replace("$call", call).replace("$target", target)
    yield replaced_statement(statement, code)
    for switch in filter(_is_switch, ast.walk(found.tree)):
        assert isinstance(switch, ast.Call)
        # The paper's total loss has no other contrastive term on the representation.
        yield replaced(switch, f"not brpg.counts and {ast.unparse(switch)}".replace("'", '"'))
        found.findings.add(
            "contrastive loss", ast.unparse(switch), switch.lineno, note="off with the head, as in the paper"
        )
    yield from old_iterators(found.tree)


def replaced_statement(statement: ast.stmt, code: str) -> Edit:
    """Put statements in the place of one."""
    return Replace(anchor=ast.unparse(statement), at=at(statement), code=code)


def _is_switch(node: ast.AST) -> bool:
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Attribute)
        or node.func.attr != "get"
        or not node.args
    ):
        return False
    return isinstance(node.args[0], ast.Constant) and node.args[0].value == "contrastive"


def frozen_rate(found: Found) -> Iterator[Edit]:
    """The scheduler drives a second optimizer."""
    for node in ast.walk(found.tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and dotted(node.value.func) == "get_scheduler"
        ):
            scheduler, optimizer = ast.unparse(node.targets[0]), found.surroundings.names["optimizer"]
            lines = f"""
# a resumed optimizer no longer shares its groups with optimizer_start, which alone the scheduler drives
{scheduler}.optimizer = {optimizer}
"""
            yield after(node, lines)


LINES = {"train_semi.py": Lines(passes=("?", "x s"), step=STEP)}

U2PL = Family(
    name="u2pl",
    repository="https://github.com/Haochen-Wang409/U2PL",
    commits=("ab3d2be",),
    scripts=dict.fromkeys(LINES, ()),
    lines=LINES,
    start={"train_semi.py": "--config=config.yaml --seed 2"},
    folder="experiments/pascal/1464/ours",
    runs_in_checkout=False,
    network="u2pl.models.model_helper",
    layers=(),
    imports=IMPORTS,
    plugin=PLUGIN,
    ending="",
    record=record,
    quote='"',
    outputs=outputs,
    extras=extras,
    fixes={"frozen-rate": Fix(summary="the learning rate stays where it was after a resume", edits=frozen_rate)},
)
