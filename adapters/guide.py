"""The lines for a script of no known framework: what it has, what is missing, and a diff of the lines to add."""

from __future__ import annotations

import ast
import difflib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .analysis.values import dotted
from .editing.edit import PatchError
from .editing.tidy import MARK, tidy
from .patching.edits import edits_of, of_object
from .patching.found import Found, examine
from .patching.framework import PATCHED
from .patching.lines import filled, general_step, plugin_slots, step_slots, with_sum
from .patching.plan import Plan
from .patching.teacher import teacher_edits
from .roles.findings import LIKELY, Findings, Lacking, Missing
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

ENDING = """    $ignored
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=$logits_l, labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            $weak
        ),
        iteration=$iteration
    )
"""

CLASSES = ("num_classes", "n_classes", "nclass", "classes")
LAYERS = {
    "decoder": (
        ("decoder", "decode_head", "fuse", "aspp", "neck", "up4", "features"),
        "name of the layer whose output is the decoder's features, one tensor",
    ),
    "classifier": (
        ("classifier", "cls_seg", "cls", "seg_head", "out_conv", "final", "head", "pred", "out"),
        "name of the convolution that makes logits of them",
    ),
}
"""The layers that are listened to: words that people call them, and what to fill in for those that are not found."""


@dataclass(frozen=True)
class Guide:
    """What ``brpg patch --guide`` knows of a script.

    Attributes:
        plan: Roles, what is missing, and the edits.
        questions: What no script tells, such as names of layers, each with what to put there.
    """

    plan: Plan
    questions: Sequence[str]


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
        source = tidy(source.removeprefix(MARK))
    except SyntaxError as error:
        raise PatchError(f"not valid Python: line {error.lineno}") from None
    plan = Plan("own script", "", source, Findings())
    questions: list[str] = []
    try:
        found = examine(source, plan.findings)
        step = filled(general_step(found, ENDING), step_slots(found))
        plugin, questions = _plugin(found)
        if found.step.weak is None:
            plan.findings.lack(
                "weak view",
                "no pass under a torch.no_grad() of its own gives the pseudo labels",
                by_hand="with brpg.teacher_pass(): ...",
            )
        extras = list(teacher_edits(found))
        plan.edits = of_object(found, [*edits_of(found, IMPORTS, plugin, with_sum(found, step), "'"), *extras])
    except Lacking as lacking:
        plan.findings.missing.insert(0, lacking.missing)
        plan.findings.missing += _also_missing(source, lacking.missing)
    return Guide(plan, questions)


def guide_lines(name: str, source: str, made: Guide) -> Iterator[str]:
    """What a script has and lacks, and the diff of the lines to add, line by line."""
    yield from made.plan.lines(name)
    if not made.plan.complete:
        return
    if made.questions:
        yield f"  {len(made.questions)} to fill in:"
    for question in made.questions:
        yield f"    {question}"
    patched = made.plan.apply()
    yield from difflib.unified_diff(
        source.splitlines(), patched.splitlines(), name, f"{name} (with the head)", lineterm=""
    )
    yield "  settings: {'preset': 'small_data'} is for few labels, None for the paper's; feature_dim decides the cost"


def _plugin(found: Found) -> tuple[str, list[str]]:
    """The lines that make the plug-in, and what is left to fill in."""
    names = found.surroundings.names
    there = _attributes(found)
    layers = {word: next((one for one in words if one in there), "") for word, (words, _) in LAYERS.items()}
    for word, layer in layers.items():
        if layer:
            found.findings.add(f"layer of the {word}", layer, 0, LIKELY, "by its name")
    slots = {word: repr(layer or word.upper()) for word, layer in layers.items()}
    among = f"; the script's classes have {', '.join(there)}" if there else ""
    questions = [f"{word.upper()!r}: {LAYERS[word][1]}{among}" for word, layer in layers.items() if not layer]
    classifier = f"{names['net']}.get_submodule({slots['classifier']})"
    slots |= plugin_slots(found) | {
        "section": f"{names['cfg']}.get('brpg')" if "cfg" in names else "{'preset': 'small_data'}",
        "classes": _classes(found) or f"{classifier}.out_channels",
        "channels": f"{classifier}.in_channels",
    }
    return string.Template(PLUGIN).substitute(slots), questions


def _attributes(found: Found) -> list[str]:
    """Layers of the networks whose classes the script holds, in their order."""
    owners = [node for node in found.tree.body if isinstance(node, ast.ClassDef) and _is_network(node)]
    nodes = [node for owner in owners for node in ast.walk(owner)]
    stores = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    own = sorted((node for node in stores if dotted(node.value) == "self"), key=lambda node: node.lineno)
    networks = [node.attr for node in own if node.attr not in found.flow.networks]
    return list(dict.fromkeys(networks))


def _is_network(owner: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "forward" for node in owner.body)


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
