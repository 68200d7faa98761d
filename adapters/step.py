"""What one training step has: the student's passes, labels, pseudo labels, their confidence, and the weak view."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .descent import Descent
from .flow import Flow, Place, Value, without_gradient
from .roles import CERTAIN, LIKELY, Findings, Lacking, Missing, code_of, line_of, nearest
from .trace import (
    CONFIDENCE,
    LABEL,
    View,
    counterparts,
    is_confidence_of,
    is_data,
    labels_in,
    layout,
    names_of,
    nature,
    plain,
    view,
)


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
    finder = _Finder(flow, descent, findings)
    step = Step(descent, finder.student(), [])
    step.passes, step.unheard = finder.passes(step.student, taps)
    step.labels, step.labeled = finder.labeled(step.student)
    step.strong = finder.strong(step)
    step.weak = finder.weak(step)
    return step


def grad_forwards(value: Value) -> Iterator[Value]:
    """Forward passes that a gradient of ``value`` reaches."""
    seen, waiting = set[int](), [value]
    while waiting:
        inner = waiting.pop()
        if id(inner) in seen or inner.op in ("label", "detach", "size", "shape"):
            continue
        seen.add(id(inner))
        if inner.op == "forward" and inner.detail[1]:
            yield inner
        waiting += inner.args


class _Finder:
    def __init__(self, flow: Flow, descent: Descent, findings: Findings) -> None:
        self.flow, self.descent, self.findings = flow, descent, findings
        self.target = descent.place
        self.loop = [statement for statement, _ in self.target.around if isinstance(statement, ast.For | ast.While)]
        self.calls = [(value, place) for value, place in flow.calls if self._in_step(place)]
        self.images = [part for value, _ in flow.forwards() for part in layout(value)]

    def _in_step(self, place: Place) -> bool:
        """Whether a place is run once for each step, before its end."""
        if place.depth > self.target.depth:
            return True
        if not self.loop or place.function != self.target.function:
            return not self.loop
        inside = any(statement is self.loop[-1] for statement, _ in place.around)
        return inside and place.statement.lineno <= self.target.statement.lineno

    def student(self) -> str:
        """Name of the network whose gradient the loss has."""
        names = list(dict.fromkeys(map(self.network, grad_forwards(self.descent.value))))
        frozen = self._frozen()
        left = [name for name in names if name not in frozen] or names
        line = self.target.statement.lineno
        if not left:
            near = [
                (line_of(self.flow, value), ast.unparse(value.node or ast.Pass()))
                for value, _ in self.calls
                if value.op == "forward"
            ]
            raise Lacking(Missing("student", f"no forward pass with gradient in `{self.descent.loss}`", near))
        if len(left) > 1:
            reason = (
                f"{len(left)} networks have a gradient of `{self.descent.loss}`: {', '.join(left)}; a head serves one"
            )
            raise Lacking(Missing("student", reason, [(line, name) for name in left]))
        return self.findings.add(
            "student", left[0], line_of(self.flow, self._first(left[0])), note="its passes reach the loss with gradient"
        )

    def network(self, forward: Value) -> str:
        """The name that the step's function has for the network of a pass."""
        return next(iter(names_of(forward.args[0], self.target.env)), str(forward.detail[0]))

    def _trained(self, value: Value, student: str) -> View | None:
        """The images that a value predicts, if the student makes the prediction with gradient."""
        found = view(value)
        trained = found is not None and found.forward.detail[1] and self.network(found.forward) == student
        return found if trained else None

    def _first(self, name: str) -> Value:
        return next(value for value, _ in self.flow.forwards() if self.network(value) == name and value.detail[1])

    def _frozen(self) -> set[str]:
        """Names of networks whose parameters get no gradient."""
        values = set[int]()
        for place in self.flow.places:
            text = (
                ast.unparse(place.statement)
                if not hasattr(place.statement, "body") or isinstance(place.statement, ast.For)
                else ""
            )
            if "requires_grad_(False)" in text or "requires_grad = False" in text or ".detach_()" in text:
                names = {
                    name
                    for name in self.flow.networks
                    if f"{name}.parameters()" in text or f"{name}.requires_grad_" in text
                }
                values |= {id(place.env[name]) for name in names if name in place.env}
        env = self.target.env
        return {name for name in self.flow.networks if name in env and any(id(inner) in values for inner in env[name])}

    def passes(self, student: str, taps: bool) -> tuple[list[Pass], list[Pass]]:
        """The student's training passes in a step, in order, and those whose results are detached."""
        every = [
            Pass(value, place)
            for value, place in self.calls
            if value.op == "forward" and value.detail[1] and self.network(value) == student
        ]
        reached = {id(value) for value in grad_forwards(self.descent.value)}
        found = [one for one in every if id(one.value) in reached]
        detached = [one for one in every if id(one.value) not in reached]
        for one in found if taps else ():
            self._once(one)
        for number, one in enumerate(found, 1):
            code = ast.unparse(one.value.node or ast.Pass())
            self.findings.add(
                f"pass {number}", code, line_of(self.flow, one.value), note="training pass of the student"
            )
        return found, detached if taps else []

    def _once(self, one: Pass) -> None:
        """A pass that some steps make and others do not, or several times, cannot be told from the others."""
        around = [statement for statement, _ in self.target.around]
        extra = [
            statement
            for statement, _ in one.place.around
            if statement not in around and not isinstance(statement, ast.With)
        ]
        if not extra or one.place.function != self.target.function:
            return
        kind = "in a loop" if isinstance(extra[0], ast.For | ast.While) else "in one branch only"
        code, line = ast.unparse(one.value.node or ast.Pass()), one.place.statement.lineno
        reason = f"`{code}` is run with gradient {kind}; the number of training passes must be the same in each step"
        raise Lacking(Missing("passes", reason, [(line, ast.unparse(one.place.statement).splitlines()[0])]))

    def labeled(self, student: str) -> tuple[str, View]:
        """Labels, and the images that they belong to."""
        terms, unlabeled = [], set[int]()
        for value, place in self.calls:
            arguments = list(_flat(value)) if value.op == "call" else []
            seen = [
                found
                for found in (self._trained(argument, student) for argument in arguments)
                if found is not None and len(found.parts) == 1
            ]
            data = [argument for argument in arguments if is_data(argument, argument) and not self._is_image(argument)]
            if seen and any(nature(argument) == LABEL for argument in arguments):
                unlabeled |= _items(seen[0].images[0])
            elif seen:
                terms += [(one, seen[0], place) for one in data]
        own = [term for term in terms if not _items(term[0]) & unlabeled]
        named = [(code_of(label, self.target, place.env), label, seen, place) for label, seen, place in own or terms]
        usable = [entry for entry in named if entry[0] is not None]
        if not usable:
            near = [(place.statement.lineno, ast.unparse(place.statement).splitlines()[0]) for _, _, place in terms]
            reason = "no call takes predictions of the student and data of a loader that is no image"
            raise Lacking(Missing("labels", reason, near, "LabeledBatch(features=..., logits=..., labels=LABELS)"))
        code, label, seen, place = usable[-1]
        self._same_loader(str(code), label, seen, place)
        sure = CERTAIN if len({id(plain(entry[1])) for entry in usable}) == 1 else LIKELY
        self.findings.add(
            "labels", str(code), place.statement.lineno, sure, f"in `{ast.unparse(place.statement).splitlines()[0]}`"
        )
        return str(code), seen

    def _same_loader(self, code: str, label: Value, seen: View, place: Place) -> None:
        images, labels = _items(seen.images[0]), _items(label)
        if images and labels and not images & labels:
            name = _text(seen.images[0])
            reason = f"`{code}` meets predictions of `{name}`, of another loader: pass and loss differ in their order"
            raise Lacking(
                Missing("labels", reason, [(place.statement.lineno, ast.unparse(place.statement).splitlines()[0])])
            )

    def _is_image(self, value: Value) -> bool:
        return any(plain(value) is image for image in self.images)

    def strong(self, step: Step) -> list[Strong]:
        """Strong views, with what belongs to them."""
        terms: dict[tuple[int, int], tuple[View, Value, Place]] = {}
        for value, place in self.calls:
            arguments = list(_flat(value)) if value.op == "call" else []
            seen = [
                found
                for found in (self._trained(argument, step.student) for argument in arguments)
                if found is not None
            ]
            seen = [found for found in seen if found.is_main and len(found.parts) == 1]
            pseudo = [argument for argument in arguments if nature(argument) == LABEL]
            if seen and pseudo:
                key = (id(seen[0].forward), seen[0].parts[0])
                before = terms.get(key)
                if before is None or len(place.around) < len(before[2].around):
                    terms[key] = (seen[0], pseudo[0], place)
        if not terms:
            self._no_pseudo_labels()
        order = [id(one.value) for one in step.passes]
        ranked = sorted(terms.values(), key=lambda term: (order.index(id(term[0].forward)), term[0].parts))
        return [self._strong(*term) for term in ranked]

    def _no_pseudo_labels(self) -> None:
        held = [(line_of(self.flow, value), name) for name, value in self.target.env.items() if nature(value) == LABEL]
        reason = "no call takes predictions of the student and classes that a network found most probable (argmax, max)"
        by_hand = "confidence, pseudo_labels = teacher(images).softmax(dim=1).max(dim=1)"
        raise Lacking(Missing("pseudo labels", reason, held[-3:], by_hand))

    def _strong(self, seen: View, pseudo: Value, place: Place) -> Strong:
        code = code_of(pseudo, self.target, place.env)
        unfiltered = [arg for arg in plain(pseudo).args if nature(arg) == LABEL] if plain(pseudo).op == "call" else []
        if len(unfiltered) == 1 and not self._confident(
            pseudo
        ):  # some are left out of the loss; the head decides by confidence
            return self._strong(seen, unfiltered[0], place)
        if code is None:
            where = f"{place.function}(), line {place.statement.lineno}"
            near = [
                (line_of(self.flow, value), name) for name, value in self.target.env.items() if nature(value) == LABEL
            ]
            reason = f"they are used in {where}, and no name holds them where `{self.descent.loss}` goes backward"
            raise Lacking(
                Missing("pseudo labels", reason, near, "return them too, and name them before the backward pass")
            )
        note = f"in `{ast.unparse(place.statement).splitlines()[0][:80]}`"
        self.findings.add("pseudo labels", code, place.statement.lineno, note=note)
        confidence = self._confidence(code, pseudo)
        ignore = self._ignored(code, pseudo)
        return Strong(seen, code, confidence, ignore, pseudo)

    def _confident(self, pseudo: Value) -> list[str]:
        """Names that hold the confidence of pseudo labels."""
        env = self.target.env
        return [
            name
            for name, held in env.items()
            if nature(held) == CONFIDENCE and counterparts(pseudo, held, is_confidence_of)
        ]

    def _confidence(self, code: str, pseudo: Value) -> str:
        env = self.target.env
        fitting = self._confident(pseudo)
        if fitting:
            name = fitting[-1] if len(fitting) == 1 else _closest(code, fitting, pseudo, env)
            sure = CERTAIN if len({id(plain(env[other])) for other in fitting}) == 1 else LIKELY
            return self.findings.add("confidence", name, line_of(self.flow, env[name]), sure, f"made as `{code}` is")
        direct = plain(pseudo)
        logits = plain(direct.args[0]) if direct.op == LABEL else None
        held = names_of(direct.args[0], self.target.env) if logits is not None else []
        if logits is not None and held and env[held[0]].op != "same":
            made = f"{held[0]}.softmax(dim=1).amax(dim=1)"
            return self.findings.add(
                "confidence", made, line_of(self.flow, direct), LIKELY, f"of the logits that `{code}` is of"
            )
        others = [name for name, value in env.items() if nature(value) == CONFIDENCE]
        reason = f"no name holds the probability of `{code}`, mixed as `{code}` is"
        by_hand = f"confidence = ...  # made as `{code}`, with .max(dim=1)[0] for .argmax(dim=1)"
        raise Lacking(Missing("confidence", reason, nearest(code, env, others), by_hand))

    def _ignored(self, code: str, pseudo: Value) -> str:
        env = self.target.env
        marked = {id(value) for value in self._marked(pseudo)}
        fitting = [
            name for name, held in env.items() if counterparts(pseudo, held, is_data) and not self._is_image(held)
        ]
        fitting = [name for name in fitting if any(id(inner) in marked for inner in env[name])]
        if not fitting:
            return ""
        name = _closest(code, fitting, pseudo, env)
        return self.findings.add(
            "ignored pixels", name, line_of(self.flow, env[name]), note=f"255 in padding, mixed as `{code}` is"
        )

    def _marked(self, pseudo: Value) -> list[Value]:
        """Data that is compared with 255, or that a loss takes beside pseudo labels or confidence."""
        found = [plain(value) for value, number in self.flow.compared if number == 255]
        for value, _ in self.calls:
            arguments = [plain(argument) for argument in _flat(value)] if value.op == "call" else []
            if any(
                argument is plain(pseudo) or counterparts(pseudo, argument, is_confidence_of) for argument in arguments
            ):
                found += [argument for argument in arguments if counterparts(pseudo, argument, is_data)]
        return [value for value in found if is_data(value, value) and not self._is_image(value)]

    def weak(self, step: Step) -> Weak | None:
        """The pass whose predictions the pseudo labels are."""
        bases = labels_in(step.strong[0].labels)
        trained = {id(one.value) for one in step.passes}
        seen = [(label, view(label.args[0])) for label in bases]
        known = [(label, found) for label, found in seen if found is not None and len(found.parts) == 1]
        own = [(label, found) for label, found in known if id(found.forward) in trained]
        others = [(label, found) for label, found in known if self.network(found.forward) != step.student]
        for label, found in own or others or known:
            valid = self._valid(step, label)
            network, forward, part = self.network(found.forward), found.forward, found.parts[0]
            line = line_of(self.flow, forward)
            if own:
                self.findings.add("weak view", _text(found.images[0]), line, note="the student's training pass")
                return Weak("student", network, forward, part, valid, None)
            context = self._context(forward)
            if context is not None:
                self.findings.add(
                    "weak view", ast.unparse(forward.node or ast.Pass()), line, note="a pass without gradient"
                )
                return Weak("listened", network, forward, part, valid, context)
        return None

    def _valid(self, step: Step, label: Value) -> str:
        strong = step.strong[0]
        held = self.target.env.get(strong.ignore)
        pairs = counterparts(strong.labels, held, is_data) if held is not None else []
        for own, data in pairs:
            names = names_of(data, self.target.env) if own is label else []
            if names:
                return names[0]
        return ""

    def _context(self, forward: Value) -> Place | None:
        """The ``with torch.no_grad()`` around a pass, if there is nothing else to hear in it."""
        place = next(place for value, place in self.calls if value is forward)
        inner = [statement for statement, _ in place.around if isinstance(statement, ast.With)]
        inner = [
            statement for statement in inner if any(without_gradient(item.context_expr) for item in statement.items)
        ]
        if not inner or place.function != self.target.function:
            return None
        heard = [
            value
            for value, other in self.calls
            if value.op == "forward"
            and value.detail[0] == forward.detail[0]
            and inner[-1] in [s for s, _ in other.around]
        ]
        if len(heard) != 1:
            return None
        return next(found for found in self.flow.places if found.statement is inner[-1])


def _closest(code: str, names: Sequence[str], pseudo: Value, env: dict[str, Value]) -> str:
    """The name most like that of the pseudo labels, among those that hold the same; the last one bound otherwise."""
    import difflib

    if len({id(plain(env[name])) for name in names}) == 1:
        return names[0]
    return max(names, key=lambda name: difflib.SequenceMatcher(None, name, code).ratio())


def _flat(value: Value) -> Iterator[Value]:
    """Arguments of a call, and of tuples among them."""
    for argument in value.args:
        if argument.op in ("tuple", "dict"):
            yield from _flat(argument)
        else:
            yield argument


def _items(value: Value) -> set[int]:
    """Which loaders' items a value is made of."""
    return {id(inner) for inner in value if inner.op == "item"}


def _text(value: Value) -> str:
    return ast.unparse(value.node) if isinstance(value.node, ast.expr) else value.op
