"""The parts of a training step that the inserted lines need."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..analysis.values import Place, Value
from ..analysis.views import View, layout
from .descent import Descent


@dataclass(frozen=True)
class Pass:
    """A forward pass of a step.

    Attributes:
        value: It.
        place: Where.
        parts: The images of its batch, part by part.
    """

    value: Value
    place: Place

    @property
    def parts(self) -> list[Value]:
        """The images of its batch, part by part."""
        return layout(self.value)


@dataclass(frozen=True)
class Strong:
    """A strong view that the student learns from with pseudo labels.

    Attributes:
        view: Which images of which pass.
        pseudo: Code of the pseudo labels.
        confidence: Code of their confidence.
        ignore: Code of the map that is 255 in padding; empty if there is none.
        labels: The pseudo labels.
    """

    view: View
    pseudo: str
    confidence: str
    ignore: str
    labels: Value


@dataclass(frozen=True)
class Weak:
    """Where the weak view's features come from.

    Attributes:
        source: ``student`` (a training pass), ``listened`` (a pass without gradient), or empty.
        network: Name of the network.
        forward: The pass.
        part: Which part of its batch.
        valid: Code of the map that is 255 in padding; empty if there is none.
        context: ``torch.no_grad()`` around the pass.
    """

    source: str
    network: str
    forward: Value
    part: int
    valid: str
    context: Place | None


@dataclass
class Step:
    """All of it."""

    descent: Descent
    student: str
    passes: list[Pass]
    unheard: list[Pass] = field(default_factory=list)
    labels: str = ""
    labeled: View | None = None
    strong: list[Strong] = field(default_factory=list)
    weak: Weak | None = None
