"""What is around a training step: where the plug-in is made, and which names it has there."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..analysis.names import OWN
from ..analysis.values import Flow, Place, Value, dotted, place_of
from ..analysis.views import names_of, plain
from .descent import Descent
from .findings import Findings, Lacking, Missing, line_of
from .holes import hole

LOADS = ("load", "load_state", "load_checkpoint", "resume", "load_ckpt")


@dataclass(frozen=True)
class Insertion:
    """Lines for one statement.

    Attributes:
        statement: Where.
        code: What.
        before: Whether they go before it; after it otherwise.
    """

    statement: ast.stmt
    code: str
    before: bool


@dataclass
class Surroundings:
    """Where the parts of the plug-in go, and how the inserted lines name what they use.

    Attributes:
        start: The statement that the plug-in is made before; made after ``start_after`` if that is a statement.
        calls: The calls that hand the plug-in to the function with the step, each with the name of what it calls.
        names: Code of the settings, by name of the slot in the lines of a family.
        insertions: Lines for checkpoints, scores and logging.
    """

    start: Place
    start_after: ast.stmt | None
    calls: list[tuple[Place, str]]
    names: dict[str, str] = field(default_factory=dict)
    insertions: list[Insertion] = field(default_factory=list)
    resumes_with: ast.Call | None = None


class Around:
    """Finds the surroundings of a step."""

    def __init__(self, flow: Flow, descent: Descent, student: str, teacher: str, findings: Findings) -> None:
        self.flow, self.descent, self.findings = flow, descent, findings
        self.target = descent.place
        self.student, self.teacher = student, teacher
        self.calls = self._chain()
        self.main = self.calls[-1][0] if self.calls else self.target
        loops = [statement for statement, _ in self.main.around if isinstance(statement, ast.For | ast.While)]
        self.loop = place_of(flow, loops[0]) if loops else self.main
        self.place, self.after = self._start()
        self.env = self.place.env
        self.scored: Insertion | None = None
        self.counted = ""  # the count of iterations of a training without epochs

    def _chain(self) -> list[tuple[Place, str]]:
        """Calls from the function with the step up to the one that builds the optimizer, or goes through the epochs."""
        chain, place = list[tuple[Place, str]](), self.target
        while place.function and not self._builds(place):
            caller = self._caller(place)
            if caller is None:
                break
            chain.append((caller, place.function))
            place = caller
        return chain

    def _caller(self, place: Place) -> Place | None:
        """Where the function of a place is called."""
        names = (place.function, OWN + place.function)
        at = self.flow.places.index(place)
        for other in reversed(self.flow.places[:at]):
            if other.depth != place.depth - 1 or hasattr(other.statement, "body"):
                continue
            if any(isinstance(node, ast.Call) and dotted(node.func) in names for node in ast.walk(other.statement)):
                return other
        return None

    def _builds(self, place: Place) -> bool:
        """Whether the function of a place binds the optimizer itself."""
        value = self.target.env.get(self.descent.optimizer)
        bound = [
            ast.unparse(target)
            for other in self.flow.places
            if other.function == place.function and isinstance(other.statement, ast.Assign)
            for target in other.statement.targets
        ]
        return value is not None and any(place.env.get(name) is value for name in bound)

    def _start(self) -> tuple[Place, ast.stmt | None]:
        """Where the plug-in is made: when all it needs is there, before the script resumes."""
        made = self._where_made() if self.own else None
        if made is not None:
            return made
        block, loop = list(self.loop.block), self.loop.statement
        end = block.index(loop)
        ready = self._ready(block[:end])
        for index in range(ready, end):
            if any(is_load(node) for node in ast.walk(block[index])):
                end = index
                break
        return place_of(self.flow, block[end]), block[end - 1] if end else None

    def _where_made(self) -> tuple[Place, ast.stmt | None] | None:
        """In ``__init__`` of an object with a method that loads: its optimizer must have all parameters before that."""
        loading = {
            OWN + place.function
            for place in self.flow.places
            if "self" in place.env
            and isinstance(place.statement, ast.Assign)
            and any(is_load(node) for node in ast.walk(place.statement.value))
        }
        own = [place for place in self.flow.places if place.function == "__init__" and "self" in place.env]
        if not loading or not own or self.loop.function == "__init__":
            return None
        block = list(next(place.block for place in own if not place.around))
        loads = [
            index
            for index, statement in enumerate(block)
            if any(is_load(node) or dotted(getattr(node, "func", node)) in loading for node in ast.walk(statement))
        ]
        end = loads[0] if loads else len(block)
        if end == 0 or self._ready(block[: end + 1]) > end:
            return None
        place = place_of(self.flow, block[min(end, len(block) - 1)])
        kept = {name: held for name, held in self.loop.env.items() if name in place.env or name.startswith(OWN)}
        return (place if loads else replace(place, env=kept)), block[end - 1]

    def _ready(self, block: Sequence[ast.stmt]) -> int:
        """Index of the first statement of a block at which networks and optimizer are what they are in the loop."""
        kept = [
            name
            for name in (
                self.main_name(self.student),
                self.main_name(self.descent.optimizer),
                self.main_name(self.teacher),
            )
            if name
        ]
        final = [self.main.env.get(name) for name in kept]
        for index, statement in enumerate(block):
            env = place_of(self.flow, statement).env
            if [env.get(name) for name in kept] == final:
                return index
        return len(block)

    def main_name(self, name: str) -> str:
        """A name of the step's function, as the function that calls it has it."""
        if not self.calls or not name:
            return name
        value = self.target.env.get(name)
        names = names_of(value, self.main.env) if value is not None else []
        return names[0] if names else ""

    def optimizer(self) -> str:
        """The optimizer, as it is called before the loop."""
        name = self.main_name(self.descent.optimizer)
        if not name or name not in self.env:
            raise Lacking(
                Missing(
                    "optimizer",
                    f"`{self.descent.optimizer}` steps, but is not there before the loop",
                    by_hand="optimizer = ...",
                )
            )
        line = line_of(self.env[name])
        groups = _groups(self.env[name])
        note = "one group of parameters" if groups == 1 else ""
        return self.findings.add("optimizer", name, line, note=note)

    def groups(self) -> int | None:
        """How many groups the optimizer evidently has."""
        return _groups(self.env[self.main_name(self.descent.optimizer)])

    @property
    def is_parallel(self) -> bool:
        """Whether the network is wrapped for several processes."""
        return any(_is_parallel(str(inner.detail)) for inner in _wraps(self.env.get(self.main_name(self.student))))

    def bare_network(self) -> str:
        """The bare network, whether or not it is wrapped for several processes."""
        name = self.main_name(self.student)
        wraps = list(_wraps(self.env.get(name)))
        if any(inner.op == "either" for inner in wraps):
            note = "wrapped for several processes in one branch only"
            return self.findings.add(
                "network", f"getattr({name}, 'module', {name})", line_of(self.env[name]), note=note
            )
        if self.is_parallel:
            return self.findings.add(
                "network", f"{name}.module", line_of(self.env[name]), note="in DistributedDataParallel"
            )
        return self.findings.add("network", name, line_of(self.env.get(name)), note="not wrapped")

    def move(self) -> str:
        """How a module is moved to where the network is: ``.cuda()``, ``.to(device)``."""
        model = self.main_name(self.student)
        elsewhere = f".to(next({model}.parameters()).device)"
        chain = list(_wraps(self.env.get(model)))
        for call in (*(inner.node for inner in chain), *self._moved(model)):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr == "to" and call.args:
                known = names_in(call.args[0]) <= self.env.keys()
                return f".to({ast.unparse(call.args[0])})" if known else elsewhere
            if call.func.attr == "cuda":
                return ".cuda()"
            if call.func.attr == "prepare":
                return f".to({ast.unparse(call.func.value)}.device)"
        calls = (node for place in self.flow.places for node in ast.walk(place.statement) if isinstance(node, ast.Call))
        on_cuda = any(isinstance(call.func, ast.Attribute) and call.func.attr == "cuda" for call in calls)
        return ".cuda()" if on_cuda else elsewhere

    def _moved(self, model: str) -> Iterator[ast.expr]:
        """``model.cuda()`` and ``model.to(device)`` as statements."""
        held = {id(inner) for inner in _wraps(self.env.get(model))}
        for place in self.flow.places:
            call = place.statement.value if isinstance(place.statement, ast.Expr) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                owner = place.env.get(dotted(call.func.value))
                if owner is not None and id(owner) in held:
                    yield call

    @property
    def own(self) -> bool:
        """Whether the step is an object's, which then holds the plug-in too."""
        return self.student.startswith(OWN)

    def loops(self) -> list[ast.For | ast.While]:
        """The loops around the step, in all functions up to the one with the plug-in, outermost first."""
        places = [*(place for place, _ in reversed(self.calls)), self.target]
        return [
            statement for place in places for statement, _ in place.around if isinstance(statement, ast.For | ast.While)
        ]

    @property
    def unit(self) -> str:
        """What the script's own count counts."""
        return "iteration" if self.counted else "epoch"

    def epoch_name(self) -> str:
        """What the loop over epochs counts, or over iterations where there is no other."""
        loop = self.loop.statement
        if self.counted or not isinstance(loop, ast.For):
            return self.counted or (hole("epoch") if self.findings.tolerant else "epoch")
        return ast.unparse(loop.target)


def is_load(node: ast.AST) -> bool:
    """Whether an expression loads a checkpoint."""
    name = dotted(node.func) if isinstance(node, ast.Call) and node.args else ""
    return name.rpartition(".")[2] in LOADS and name.partition(".")[0] not in ("yaml", "json", "np", "pickle")


def _is_parallel(name: str) -> bool:
    return any(word in name.lower() for word in ("parallel", "ddp", ".prepare"))


def _wraps(value: Value | None) -> Iterator[Value]:
    """The calls that made a network of a network, the outermost first."""
    while value is not None and value.op in ("call", "part", "either", "same", "tuple"):
        yield value
        inner = [arg for arg in value.args if arg.op in ("call", "part", "either", "tuple", "same")]
        value = inner[0] if inner else None


def _groups(value: Value | None) -> int | None:
    """Parameter groups of an optimizer, as far as its call shows."""
    value = plain(value) if value is not None else None
    while value is not None and value.op == "part":
        value = value.args[0]
    if value is None or value.op != "call" or not value.args:
        return None
    first = value.args[0]
    if first.op == "tuple":
        return len(first.args) if all(arg.op == "dict" for arg in first.args) else None
    made = str(first.detail) if first.op == "call" else ""
    return 1 if made.endswith("parameters") else None


def names_in(node: ast.AST) -> set[str]:
    """Names that code uses."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
