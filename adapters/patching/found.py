"""All roles of a script."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..analysis.statements import follow
from ..analysis.values import Flow
from ..analysis.views import names_of
from ..roles.around import Around, Surroundings
from ..roles.descent import Descent, find_descent, within
from ..roles.findings import Findings, Lacking
from ..roles.parts import Step
from ..roles.step import find_step
from ..roles.surroundings import find_surroundings


@dataclass
class Found:
    """All that is known of a script.

    Attributes:
        tree: Its syntax.
        flow: The flow of its values.
        findings: Its roles, and what is missing.
        step: Its training step.
        surroundings: What is around it.
        around: Finds more of that.
    """

    tree: ast.Module
    flow: Flow
    findings: Findings
    step: Step
    surroundings: Surroundings
    around: Around


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
    outer = find_descent(flow)
    step = _best_step(flow, outer, findings, taps)
    teacher = step.weak.network if step.weak is not None and step.weak.network != step.student else ""
    around = Around(flow, step.descent, step.student, teacher or _averaged(flow, step), findings)
    return Found(tree, flow, findings, step, find_surroundings(around), around)


def _best_step(flow: Flow, outer: Descent, findings: Findings, taps: bool) -> Step:
    """The step where it goes backward, or in the function that returns the loss if more of it is seen there.

    Raises:
        Lacking: A part is missing in both.
    """
    failed: Lacking | None = None
    tried: list[tuple[int, Step, Findings]] = []
    for descent in (outer, within(flow, outer)):
        if descent is None or (tried and not tried[0][0]):
            continue
        again = Findings(tolerant=findings.tolerant)
        try:
            step = _found_step(flow, descent, again, taps)
        except Lacking as lacking:
            if failed is None and descent is outer:
                failed, findings.roles[:] = lacking, again.roles
            continue
        tried.append((len(again.missing) + (step.weak is None), step, again))
    if not tried:
        assert failed is not None
        raise failed
    _, step, again = min(tried, key=lambda one: one[0])
    findings.roles[:], findings.missing[:] = again.roles, again.missing
    return step


def _found_step(flow: Flow, descent: Descent, findings: Findings, taps: bool) -> Step:
    findings.add("loss", descent.loss, descent.place.statement.lineno, note=descent.note)
    findings.add("backward", ast.unparse(descent.backward.statement), descent.backward.statement.lineno)
    return find_step(flow, descent, findings, taps=taps)


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
    first = next((inner for one in step.strong[:1] for inner in one.labels if inner.op == "forward"), None)
    names = names_of(first.args[0], step.descent.place.env) if first is not None else []
    return "" if not names or names[0] == step.student else names[0]
