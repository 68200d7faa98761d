"""The lines that a script gets, made of its roles: edits for the engine."""

from __future__ import annotations

import ast
import io
import string
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .descent import find_descent
from .engine import AddArgument, After, Before, Edit, Replace
from .flow import Flow, Place, Value, dotted, follow
from .roles import Findings, Lacking, Missing
from .step import Step, Strong, Weak, find_step
from .surroundings import Around, Insertion, Surroundings
from .trace import LABEL, layout, names_of, nature, plain

NONE = "\0"
"""Stands for a value that a script does not have: lines with it are left out."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The lines of one training script of a family, with ``$slots`` for what its roles are called.

    Attributes:
        passes: The batches of the student's training passes that ``step`` is for: ``x`` labeled, ``w`` weak,
            ``s`` strong, ``+`` with further arguments.
        step: Adds the head's loss.
    """

    passes: Sequence[str]
    step: str


@dataclass
class Found:
    """All that is known of a script.

    Attributes:
        tree: Its syntax.
        flow: The flow of its values.
        findings: Its roles, and what is missing.
        step: Its training step.
        around: What is around it.
    """

    tree: ast.Module
    flow: Flow
    findings: Findings
    step: Step
    around: Surroundings
    finder: Around


def examine(source: str, findings: Findings, *, taps: bool = True) -> Found:
    """Find the roles of a script.

    Args:
        source: Its source.
        findings: Filled in.
        taps: Whether layers of the student are listened to.

    Raises:
        Lacking: A part is missing that the others need.
    """
    tree = parsed(source)
    flow = follow(tree)
    descent = find_descent(flow)
    where = "scaled after it" if descent.note else ""
    findings.add("loss", descent.loss, descent.place.statement.lineno, note=descent.note and where)
    findings.add("backward", ast.unparse(descent.backward.statement), descent.backward.statement.lineno)
    step = find_step(flow, descent, findings, taps=taps)
    teacher = step.weak.network if step.weak is not None and step.weak.network != step.student else ""
    finder = Around(flow, descent, step.student, teacher or _averaged(flow, step), findings)
    return Found(tree, flow, findings, step, finder.find(), finder)


def parsed(source: str) -> ast.Module:
    """The syntax of a source; columns count characters."""
    tree = ast.parse(source)
    lines = source.splitlines() if not source.isascii() else []
    for node in ast.walk(tree) if lines else ():
        if hasattr(node, "col_offset"):
            node.col_offset = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())  # type: ignore[attr-defined]
    return tree


def _averaged(flow: Flow, step: Step) -> str:
    """The network that makes the pseudo labels, where it is another one."""
    first = next((inner for inner in step.strong[0].labels if inner.op == "forward"), None)
    names = names_of(first.args[0], step.descent.place.env) if first is not None else []
    return "" if not names or names[0] == step.student else names[0]


# edits


def edits_of(found: Found, imports: str, plugin: str, step: str, quote: str) -> list[Edit]:
    """Edits for imports, the plug-in, the step, and what is around it."""
    return [
        _import_edit(found.tree, imports),
        *_plugin_edits(found, plugin),
        *_step_edits(found, step),
        *_joined(found.around.insertions),
        *_load_edit(found.around),
        *_unheard(found),
        *_local_rank(found.tree, quote),
    ]


def at(node: ast.AST) -> tuple[int, int]:
    """Line and column of a node."""
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def before(statement: ast.stmt, code: str) -> Edit:
    """Insert lines before a statement."""
    return Before(anchor=_anchor(statement), at=at(statement), code=code)


def after(statement: ast.stmt, code: str) -> Edit:
    """Insert lines after a statement."""
    return After(anchor=_anchor(statement), at=at(statement), code=code)


def replaced(node: ast.expr, code: str, *, optional: bool = False) -> Edit:
    """Put code in the place of an expression."""
    return Replace(anchor=ast.unparse(node), at=at(node), code=code, optional=optional)


def _anchor(statement: ast.stmt) -> str:
    """A statement as an anchor: compound ones by their first line."""
    if isinstance(statement, ast.If | ast.For | ast.While | ast.With):
        head = ast.unparse(statement).splitlines()[0]
        return f"{head} ..."
    return ast.unparse(statement)


def _import_edit(tree: ast.Module, imports: str) -> Edit:
    top = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            break
        if isinstance(statement, ast.Import | ast.ImportFrom):
            top.append(statement)
    return after(top[-1], imports) if top else before(tree.body[0], imports)


def _plugin_edits(found: Found, plugin: str) -> Iterator[Edit]:
    around = found.around
    if around.start_after is not None:
        yield after(around.start_after, plugin)
    else:
        yield before(around.start.statement, plugin.lstrip("\n"))
    if around.call is not None:
        place, name = around.call
        function = next(
            node for node in ast.walk(found.tree) if isinstance(node, ast.FunctionDef) and node.name == name
        )
        call = next(
            node for node in ast.walk(place.statement) if isinstance(node, ast.Call) and dotted(node.func) == name
        )
        optional = bool(function.args.defaults)
        yield AddArgument(anchor=ast.unparse(call), at=at(call), code="brpg=brpg" if optional else "brpg")
        yield AddArgument(anchor=f"def {name}(): ...", code="brpg=None" if optional else "brpg")


def _step_edits(found: Found, step: str) -> Iterator[Edit]:
    descent = found.step.descent
    yield before(descent.place.statement, step) if descent.after is None else after(descent.after, step)
    if descent.replaced is not None:
        yield replaced(descent.replaced, descent.loss)


def _joined(insertions: Sequence[Insertion]) -> Iterator[Edit]:
    """One edit for each side of a statement."""
    for side in (True, False):
        codes: dict[int, tuple[ast.stmt, list[str]]] = {}
        for insertion in insertions:
            if insertion.before == side and insertion.code:
                codes.setdefault(id(insertion.statement), (insertion.statement, []))[1].append(insertion.code)
        for statement, lines in codes.values():
            yield (before if side else after)(statement, "\n".join(lines))


def _load_edit(around: Surroundings) -> Iterator[Edit]:
    call = around.resumes_with
    if (
        call is not None
        and dotted(call.func) == "torch.load"
        and not any(keyword.arg == "weights_only" for keyword in call.keywords)
    ):
        yield AddArgument(anchor=ast.unparse(call), at=at(call), code="weights_only=False")


def _unheard(found: Found) -> Iterator[Edit]:
    """Passes with gradient whose results are detached are no training passes."""
    for one in found.step.unheard:
        call = one.value.node
        if isinstance(call, ast.Call):
            arguments = ", ".join(map(ast.unparse, call.args)) + "".join(
                f", {keyword.arg}={ast.unparse(keyword.value)}" for keyword in call.keywords
            )
            found.findings.add("detached pass", ast.unparse(call), call.lineno, note="not listened to")
            yield replaced(call, f"brpg.unheard({ast.unparse(call.func)}, {arguments})")


def _local_rank(tree: ast.Module, quote: str) -> Iterator[Edit]:
    """``--local-rank`` beside ``--local_rank``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if names == ["--local_rank"]:
                yield AddArgument(anchor=ast.unparse(node), at=at(node), code=f"{quote}--local-rank{quote}", position=1)


def old_iterators(tree: ast.Module) -> Iterator[Edit]:
    """``next(iterator)`` for ``iterator.next()``."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "next"
            and not node.args
        ):
            yield replaced(node, f"next({ast.unparse(node.func.value)})")


def teacher_edits(found: Found) -> Iterator[Edit]:
    """Listening to a pass without gradient, and the average of the teacher's projection.

    Raises:
        Lacking: No average of the teacher's parameters was found.
    """
    weak = found.step.weak
    if weak is None or weak.source != "listened" or weak.context is None:
        return
    context = weak.context.statement
    assert isinstance(context, ast.With)
    call = next(
        item.context_expr
        for item in context.items
        if dotted(getattr(item.context_expr, "func", item.context_expr)).endswith(("no_grad", "inference_mode"))
    )
    yield replaced(call, "brpg.teacher_pass()")
    if weak.network == found.step.student:
        return
    statement, ratio = _average(found, weak.network)
    found.findings.add("average", ratio, statement.lineno, note=f"share of `{weak.network}` that stays")
    yield after(statement, f"brpg.update_teacher({ratio})")


def _average(found: Found, teacher: str) -> tuple[ast.stmt, str]:
    """The last statement of a step that moves the teacher, and the share that stays."""
    target = found.step.descent.place
    student = found.step.student
    last: tuple[ast.stmt, str] | None = None
    for place in found.flow.places:
        statement = place.statement
        if place.function != target.function or not isinstance(statement, ast.For | ast.Expr):
            continue
        used = {dotted(node) for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if not {teacher, student} <= used or statement.lineno < target.statement.lineno:
            continue
        ratio = _ratio(statement, {teacher, student})
        if ratio:
            last = statement, ratio
    if last is None:
        raise Lacking(
            Missing(
                "average",
                f"nothing moves `{teacher}` towards `{student}` after the step",
                by_hand="brpg.update_teacher(RATIO)  # where the teacher moves",
            )
        )
    return last


def _ratio(statement: ast.stmt, networks: set[str]) -> str:
    """``r`` of ``r * teacher + (1 - r) * student``, or the number in a call with both networks."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Sub)
            and isinstance(node.left, ast.Constant)
            and float(node.left.value) == 1.0
        ):  # type: ignore[arg-type]
            return ast.unparse(node.right)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call):
        others = [
            argument
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
            if dotted(argument) not in networks
        ]
        return ast.unparse(others[0]) if others else ""
    return ""


# slots


def filled(template: str, slots: Mapping[str, str], quote: str = "'") -> str:
    """A family's lines with the roles of a script in them; lines without a value are left out."""
    text = string.Template(template).substitute(slots)
    return "\n".join(line for line in text.split("\n") if NONE not in line) if NONE in text else text


def quoted(code: str, quote: str) -> str:
    """Code with strings in these quotes, where that needs no escapes.

    >>> quoted("a['b']", '"')
    'a["b"]'
    """
    other = '"' if quote == "'" else "'"
    tokens = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        text = token.string
        if (
            token.type == tokenize.STRING
            and text[0] == other
            and text[:3] != other * 3
            and quote not in text
            and "\\" not in text
        ):
            text = quote + text[1:-1] + quote
        tokens.append((token.type, text, token.start, token.end, token.line))
    return tokenize.untokenize(tokens).strip()


class Sizes:
    """Code for numbers of images in the parts of a batch."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def of(self, images: Value) -> str:
        """How many images there are."""
        found = [
            name
            for name, held in self.place.env.items()
            if held.op == "size" and held.detail == 0 and plain(held.args[0]) is plain(images)
        ]
        names = names_of(images, self.place.env)
        if found:
            return found[0]
        alike = [
            name
            for name, held in self.place.env.items()
            if held.op == "size" and held.detail == 0 and _same_item(held.args[0], images)
        ]
        if alike:
            return alike[0]
        if names:
            return f"len({names[0]})"
        text = ast.unparse(images.node) if isinstance(images.node, ast.expr) else "images"
        hint = f"images = {text}"
        raise Lacking(Missing("images", f"no name holds `{text}` where the loss goes backward", by_hand=hint))

    def part(self, forward: Value, part: int) -> str:
        """Slice of one part of a pass's batch."""
        counts = [self.of(images) for images in layout(forward)[: part + 1]]
        end = " + ".join(counts)
        return f"[:{end}]" if part == 0 else f"[{' + '.join(counts[:part])}:{end}]"


def _same_item(one: Value, other: Value) -> bool:
    from .trace import batch_of

    first, second = batch_of(one), batch_of(other)
    return first is not None and first is second


def signature(step: Step) -> tuple[str, ...]:
    """The batches of the student's passes, as in :class:`Lines`."""
    strong = {(id(one.view.forward), one.view.parts[0]) for one in step.strong}
    assert step.labeled is not None
    labeled = (id(step.labeled.forward), step.labeled.parts[0])
    weak = (id(step.weak.forward), step.weak.part) if step.weak is not None else None
    found = []
    for one in step.passes:
        kinds = []
        for part in range(len(one.parts)):
            key = (id(one.value), part)
            kinds.append("x" if key == labeled else "s" if key in strong else "w" if key == weak else "?")
        more = any(arg.op not in ("cat",) and nature(arg) is None for arg in one.value.args[2:])
        found.append(" ".join(kinds) + (" +" if more else ""))
    return tuple(found)


def step_slots(found: Found) -> dict[str, str]:
    """Slots of a step's lines."""
    step = found.step
    sizes = Sizes(step.descent.place)
    assert step.labeled is not None
    slots = {"loss": step.descent.loss, "labels": step.labels, "iteration": found.around.names["iteration"]}
    slots["n_l"] = sizes.of(step.labeled.images[0])
    if step.weak is not None:
        slots["n_w"] = _or_none(lambda: sizes.of(layout(step.weak.forward)[step.weak.part]))  # type: ignore[union-attr]
        slots["valid"] = f", valid={step.weak.valid} != 255" if step.weak.valid else ""
    slots |= _pseudo_slots(step.strong)
    return slots


def _or_none(make: object) -> str:
    try:
        return str(make())  # type: ignore[operator]
    except Lacking:
        return NONE


def _pseudo_slots(strong: Sequence[Strong]) -> dict[str, str]:
    """Pseudo labels and confidence of all strong views."""
    pseudo, confidence = _together([one.pseudo for one in strong]), _together([one.confidence for one in strong])
    ignored = [one.ignore for one in strong]
    if not all(ignored):
        return {"pseudo": pseudo, "confidence": confidence, "ignored": NONE}
    if len(strong) == 1:
        return {"pseudo": f"{pseudo}.masked_fill({ignored[0]} == 255, 255)", "confidence": confidence, "ignored": NONE}
    return {
        "pseudo": f"{pseudo}.masked_fill(ignore_s, 255)",
        "confidence": confidence,
        "ignored": f"ignore_s = {_together(ignored)} == 255",
    }


def _together(codes: Sequence[str]) -> str:
    return codes[0] if len(codes) == 1 else f"torch.cat(({', '.join(codes)}))"


def general_step(found: Found, ending: str) -> str:
    """Lines for passes that no family has: each part of each batch by its place."""
    step = found.step
    sizes = Sizes(step.descent.place)
    order = [id(one.value) for one in step.passes]
    numbers = [f"_{number}" if len(order) > 1 else "" for number in range(1, len(order) + 1)]
    assert step.labeled is not None

    def part(kind: str, forward: Value, which: int) -> str:
        return f"{kind}{numbers[order.index(id(forward))]}{sizes.part(forward, which)}"

    taken = ", ".join(f"(feat{number}, logits{number})" for number in numbers) + ("," if len(order) == 1 else "")
    features = part("feat", step.labeled.forward, step.labeled.parts[0])
    strong = _together([part("feat", one.view.forward, one.view.parts[0]) for one in step.strong])
    lines = [
        "if brpg.enabled:",
        f"    {taken} = brpg.take({len(order)})" if len(order) > 1 else f"    ({taken}) = brpg.take(1)",
    ]
    lines.append(f"    rep_x, rep_u_s = brpg.project({features}, {strong})")
    weak = _weak_view(step.weak, part)
    return "\n" + "\n".join(
        [
            *lines,
            ending.replace("$logits_l", part("logits", step.labeled.forward, step.labeled.parts[0])).replace(
                "$weak", weak
            ),
        ]
    )


def _weak_view(weak: Weak | None, part: object) -> str:
    if weak is None:
        return NONE
    valid = f", valid={weak.valid} != 255" if weak.valid else ""
    if weak.source == "listened":
        return f"**brpg.weak_view(*brpg.take_teacher(){valid})"
    feat, logits = (part(kind, weak.forward, weak.part) for kind in ("feat", "logits"))  # type: ignore[operator]
    return f"**brpg.weak_view({feat}, {logits}{valid})"


def guard_of(place: Place, value: Value) -> str:
    """The condition under which a name is bound, where that is in one branch only."""
    held = next((name for name in names_of(value, place.env)), "")
    bound = place.env.get(held)
    if bound is None or bound.op != "either" or len(bound.args) != 1:
        return ""
    branch, in_body, _ = bound.detail
    test = branch.test
    if in_body:
        return ast.unparse(test)
    opposite = {
        ast.Lt: ast.GtE,
        ast.GtE: ast.Lt,
        ast.Gt: ast.LtE,
        ast.LtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    }
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in opposite:
        return ast.unparse(ast.Compare(test.left, [opposite[type(test.ops[0])]()], test.comparators))
    return f"not ({ast.unparse(test)})"


def is_label(value: Value) -> bool:
    """Whether a value is a map of pseudo labels."""
    return nature(value) == LABEL
