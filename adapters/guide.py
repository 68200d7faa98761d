"""The lines for a script of no known framework: what it has, what is missing, and the edits that add the rest."""

from __future__ import annotations

import ast
import bisect
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .analysis.values import dotted
from .editing.edit import Edit, PatchError
from .editing.tidy import MARK, tidy
from .patching.edits import BRPG, after, edits_of, of_object
from .patching.found import Found, examine
from .patching.framework import PATCHED
from .patching.lines import ENDING, filled, general_step, plugin_slots, step_slots, with_sum
from .patching.plan import Plan
from .patching.teacher import teacher_edits
from .roles.around import Insertion
from .roles.findings import Findings, Lacking, Missing
from .roles.holes import dots, dotted_out, hole, holes_in
from .roles.layers import find_layers
from .roles.settings import options

IMPORTS = """
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

PLUGIN = """
brpg = Plugin($section, dataset='mine', num_classes=$classes,
              feature_dim=max(32, min(256, $channels)),
              epochs=$epochs, iters_per_epoch=$length)$move
brpg.tap($model$teacher, features=$decoder, logits=$classifier)
brpg.add_projection($channels, $optimizer.param_groups[-1]$average)
"""

ENDS_ELSEWHERE = Missing(
    "backward",
    "Lightning goes backward itself, from what training_step returns; this command writes no lines into that",
    by_hand="as below; the page on integrations, and examples/lightning_module.py, have it whole",
)
CLASSES = ("num_classes", "n_classes", "nclass", "classes")


@dataclass(frozen=True)
class Guide:
    """What ``brpg patch --guide`` knows of a script.

    Attributes:
        plan: Roles, what is missing, and the edits.
        questions: What no script tells, such as names of layers, each with what to put there.
        lightning: Whether it is Lightning that calls the step.
    """

    plan: Plan
    questions: Sequence[str]
    lightning: bool = False


def guide(source: str) -> Guide:
    """The lines for a script, as far as its roles are found.

    Args:
        source: The script.

    Raises:
        PatchError: It is no Python, or has the head already.
    """
    if PATCHED.search(source):
        raise PatchError("it imports brpg_lib already; guide the original instead")
    try:
        tidied = tidy(source.removeprefix(MARK))
    except SyntaxError as error:
        raise PatchError(f"not valid Python: line {error.lineno}") from None
    original, source = source, tidied
    plan = Plan("own script", "", source, Findings(tolerant=True))
    questions, lightning = list[str](), False
    try:
        found = examine(source, plan.findings)
        step = filled(general_step(found, ENDING), step_slots(found))
        plugin, questions = _plugin(found)
        questions += _scores(found)
        if found.step.weak is None and found.step.strong:
            plan.findings.lack(
                "weak view",
                "no pass under a torch.no_grad() of its own gives the pseudo labels",
                by_hand="with brpg.teacher_pass(): ...",
            )
        extras = list[Edit]()
        with plan.findings.bearing():
            extras += teacher_edits(found)
        if any(missing.name == "average" for missing in plan.findings.missing):
            extras += _unknown_share(found)
        edits = of_object(found, [*edits_of(found, IMPORTS, plugin, with_sum(found, step), "'"), *extras])
        plan.edits = [_without_holes(edit) for edit in edits]
        if found.around.own:
            plan.findings.missing[:] = [_of_object(missing) for missing in plan.findings.missing]
    except Lacking as lacking:
        lightning = lacking.missing.name == "backward" and _has_lightning_module(source)
        plan.findings.missing.insert(0, ENDS_ELSEWHERE if lightning else lacking.missing)
        plan.findings.missing += _also_missing(source, lacking.missing)
    _as_written(plan.findings, original, source)
    return Guide(plan, questions, lightning)


def _has_lightning_module(source: str) -> bool:
    """Whether a class has the step that Lightning goes backward from."""
    owners = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    bases = [dotted(base).rpartition(".")[2] for owner in owners for base in owner.bases]
    return any(name.endswith("LightningModule") for name in bases)


def _scores(found: Found) -> list[str]:
    """Lets the scores of a validation be written for ``brpg compare``; what is to be filled in then."""
    where, score = found.around.scored, found.surroundings.names.get("score")
    if where is None:
        return []
    code = f"brpg.record('FOLDER', {found.around.epoch_name()}, {score}, settings={{}})\n"
    found.surroundings.insertions.insert(0, Insertion(where.statement, code, where.before))
    return ["'FOLDER': folder of this training, for brpg_result.json, which brpg compare reads"]


def _unknown_share(found: Found) -> list[Edit]:
    """A line for the teacher's average after the optimizer's step, whose share is to be filled in."""
    for place in found.flow.places:
        call = place.statement.value if isinstance(place.statement, ast.Expr) else None
        if not isinstance(call, ast.Call) or not dotted(call.func).endswith(".step"):
            continue
        if found.step.descent.optimizer in (dotted(call.func).removesuffix(".step"), *map(dotted, call.args)):
            return [after(place.statement, f"brpg.update_teacher({hole('share')})")]
    return []


def _without_holes(edit: Edit) -> Edit:
    code = getattr(edit, "code", "")
    return replace(edit, code=dotted_out(code)) if holes_in(code) else edit  # type: ignore[call-arg]


def _of_object(missing: Missing) -> Missing:
    """A hint with ``self.brpg``, where the plug-in is an object's."""
    return replace(missing, by_hand=BRPG.sub("self.brpg", missing.by_hand))


def _as_written(findings: Findings, original: str, tidied: str) -> None:
    """Lines of the script as it is, not as it was taken apart for the edits."""
    before, after = (
        sorted((node.lineno, node.col_offset) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt))
        for text in (original.removeprefix(MARK), tidied)
    )
    if len(before) != len(after):
        return
    starts = [line for line, _ in after]

    def line_of(line: int) -> int:
        at = bisect.bisect_right(starts, line) - 1
        return before[at][0] + line - starts[at] if line and at >= 0 else line

    findings.roles[:] = [
        replace(role, line=line_of(role.line), code=dots(role.code), note=dots(role.note)) for role in findings.roles
    ]
    findings.missing[:] = [
        replace(missing, near=[(line_of(line), code) for line, code in missing.near]) for missing in findings.missing
    ]


def _plugin(found: Found) -> tuple[str, list[str]]:
    """The lines that make the plug-in, and what is left to fill in."""
    names = found.surroundings.names
    layers, questions = find_layers(found.tree, found.flow.networks, found.findings)
    slots = {word: repr(layer) for word, layer in layers.items()}
    classifier = f"{names['net']}.get_submodule({slots['classifier']})"
    slots |= plugin_slots(found) | {
        "section": f"{names['cfg']}.get('brpg')" if "cfg" in names else "{'preset': 'small_data'}",
        "classes": _classes(found) or f"{classifier}.out_channels",
        "channels": f"{classifier}.in_channels",
    }
    return string.Template(PLUGIN).substitute(slots), questions


def _classes(found: Found) -> str:
    """The number of classes, by words that people call it."""
    bound = [name for name in found.around.env if name.lower() in CLASSES]
    if bound:
        return bound[0]
    cfg = found.surroundings.names.get("cfg", "")
    for node in ast.walk(found.tree):
        key = node.slice.value if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) else None
        if isinstance(node, ast.Subscript) and key in CLASSES and ast.unparse(node.value) == cfg:
            return ast.unparse(node)
    args = found.surroundings.names.get("args", "")
    known = options(found.around) & {*CLASSES}
    return f"{args}.{min(known)}" if args and known else ""


def _also_missing(source: str, first: Missing) -> list[Missing]:
    """Which other inputs the script lacks at first sight, so that nobody has to ask twice."""
    found = []
    if first.name != "pseudo labels" and not any(
        word in source for word in ("argmax(", ".max(", "max(dim", "torch.max(")
    ):
        found.append(
            Missing(
                "pseudo labels",
                "nothing takes the most probable class (argmax, max)",
                by_hand="confidence, pseudo_labels = teacher(images).softmax(dim=1).max(dim=1)",
            )
        )
    return found
