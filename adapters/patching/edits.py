"""Roles become edits."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence

from ..analysis.values import dotted
from ..editing.edit import AddArgument, After, Before, Edit, Replace
from ..roles.around import Insertion, Surroundings
from .found import Found

BRPG = re.compile(r"(?<!['\"\w.])brpg\b(?!['\":])")


def edits_of(found: Found, imports: str, plugin: str, step: str, quote: str) -> list[Edit]:
    """Edits for imports, the plug-in, the step, and what is around it."""
    return [
        _import_edit(found.tree, imports),
        *_plugin_edits(found, plugin),
        *_step_edits(found, step),
        *_joined(found.surroundings.insertions),
        *_load_edit(found.surroundings),
        *_unheard(found),
        *_local_rank(found.tree, quote),
    ]


def of_object(found: Found, edits: Sequence[Edit]) -> list[Edit]:
    """The edits, with ``self.brpg`` where the step is an object's."""
    if not found.around.own:
        return list(edits)
    return [
        dataclasses.replace(edit, code=BRPG.sub("self.brpg", edit.code))
        if isinstance(edit, Before | Replace) and not edit.code.lstrip().startswith(("from ", "import "))
        else edit
        for edit in edits
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
    around = found.surroundings
    if around.start_after is not None:
        yield after(around.start_after, plugin)
    else:
        yield before(around.start.statement, plugin.lstrip("\n"))
    for place, name in around.calls if not found.around.own else ():
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
