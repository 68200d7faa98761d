"""What one training step has: the student's passes, labels, pseudo labels, their confidence, and the weak view."""

from __future__ import annotations

from ..analysis.values import Flow
from .descent import Descent
from .findings import Findings
from .labels import find_labels
from .parts import Step
from .pseudo_labels import find_strong
from .sight import Sight
from .student import find_passes, find_student
from .weak_view import find_weak


def find_step(flow: Flow, descent: Descent, findings: Findings, *, taps: bool = True) -> Step:
    """The roles of a step.

    Args:
        flow: The script's.
        descent: Where it ends.
        findings: What is found and missing is noted here.
        taps: Whether layers are listened to, so that the number of passes must be known.

    Raises:
        Lacking: A part that all others depend on is missing.
    """
    sight = Sight(flow, descent, findings)
    step = Step(descent, find_student(sight), [])
    step.passes, step.unheard = find_passes(sight, step.student, taps)
    with findings.bearing():
        step.labels, step.labeled = find_labels(sight, step.student)
    with findings.bearing():
        step.strong = find_strong(sight, step)
    step.weak = find_weak(sight, step) if step.strong else None
    return step
