"""What is around the training step: settings, optimizer, the count of steps, checkpoints, validation, logging."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .descent import Descent, place_of
from .flow import Env, Flow, Place, Value, dotted
from .roles import Findings, Lacking, Missing
from .trace import names_of, plain

WRITES = ("log", "log_metrics", "log_dict")


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
        call: The call that hands the plug-in to the function with the step, and that function's name.
        names: Code of the settings, by name of the slot in the lines of a family.
        insertions: Lines for checkpoints, scores and logging.
    """

    start: Place
    start_after: ast.stmt | None
    call: tuple[Place, str] | None
    names: dict[str, str] = field(default_factory=dict)
    insertions: list[Insertion] = field(default_factory=list)
    resumes_with: ast.Call | None = None


class Around:
    """Finds the surroundings of a step."""

    def __init__(self, flow: Flow, descent: Descent, student: str, teacher: str, findings: Findings) -> None:
        self.flow, self.descent, self.findings = flow, descent, findings
        self.target = descent.place
        self.student, self.teacher = student, teacher
        self.call = self._call()
        self.main = self.call[0] if self.call else self.target
        loops = [statement for statement, _ in self.main.around if isinstance(statement, ast.For | ast.While)]
        self.loop = place_of(flow, loops[0]) if loops else self.main
        self.place, self.after = self._start()
        self.env = self.place.env
        self.scored: Insertion | None = None

    def find(self) -> Surroundings:
        """All of it.

        Raises:
            Lacking: The head cannot do without a part that is missing.
        """
        found = Surroundings(self.place, self.after, self.call)
        found.names |= {"loss": self.descent.loss, "optimizer": self._optimizer(), "net": self._network()}
        found.names |= self._count()
        found.names |= self._settings()
        self._scores(found)
        self._checkpoints(found)
        self._logging(found)
        return found

    # where

    def _call(self) -> tuple[Place, str] | None:
        """The call of the function that holds the step, from the function that builds the optimizer."""
        function = self.target.function
        owners = [place for place in self.flow.places if place.depth == self.target.depth - 1]
        if not function or (self.target.depth <= 1 and self._builds(function)):
            return None
        at = self.flow.places.index(self.target)
        for place in reversed([place for place in self.flow.places[:at] if place in owners]):
            statement = place.statement
            compound = hasattr(statement, "body")
            if not compound and any(
                isinstance(node, ast.Call) and dotted(node.func) == function for node in ast.walk(statement)
            ):
                return place, function
        return None

    def _builds(self, function: str) -> bool:
        """Whether a function binds the optimizer itself."""
        name = self.descent.optimizer
        return any(
            place.function == function
            and isinstance(place.statement, ast.Assign)
            and name in map(ast.unparse, place.statement.targets)
            for place in self.flow.places
        )

    def _start(self) -> tuple[Place, ast.stmt | None]:
        """Where the plug-in is made: when all it needs is there, before the script resumes."""
        block, loop = list(self.loop.block), self.loop.statement
        end = block.index(loop)
        ready = self._ready(block[:end])
        for index in range(ready, end):
            if any(_is_load(node) for node in ast.walk(block[index])):
                end = index
                break
        return place_of(self.flow, block[end]), block[end - 1] if end else None

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
        if self.call is None or not name:
            return name
        value = self.target.env.get(name)
        names = names_of(value, self.main.env) if value is not None else []
        return names[0] if names else ""

    # what

    def _optimizer(self) -> str:
        name = self.main_name(self.descent.optimizer)
        if not name or name not in self.env:
            raise Lacking(
                Missing(
                    "optimizer",
                    f"`{self.descent.optimizer}` steps, but is not there before the loop",
                    by_hand="optimizer = ...",
                )
            )
        line = _line(self.env[name])
        groups = _groups(self.env[name])
        note = "one group of parameters" if groups == 1 else ""
        return self.findings.add("optimizer", name, line, note=note)

    def groups(self) -> int | None:
        """How many groups the optimizer evidently has."""
        return _groups(self.env[self.main_name(self.descent.optimizer)])

    def _network(self) -> str:
        """The bare network, whether or not it is wrapped for several processes."""
        name = self.main_name(self.student)
        wraps = list(_wraps(self.env.get(name)))
        if any(inner.op == "either" for inner in wraps):
            note = "wrapped for several processes in one branch only"
            return self.findings.add("network", f"getattr({name}, 'module', {name})", _line(self.env[name]), note=note)
        if any(_is_parallel(str(inner.detail)) for inner in wraps):
            return self.findings.add(
                "network", f"{name}.module", _line(self.env[name]), note="in DistributedDataParallel"
            )
        return self.findings.add("network", name, _line(self.env.get(name)), note="not wrapped")

    def epoch_name(self) -> str:
        """What the loop over epochs counts."""
        loop = self.loop.statement
        return ast.unparse(loop.target) if isinstance(loop, ast.For) else "epoch"

    def _count(self) -> dict[str, str]:
        """The count of steps, their number in an epoch, and the number of epochs."""
        loops = [
            statement
            for statement, _ in (*self.main.around, *(self.target.around if self.call else ()))
            if isinstance(statement, ast.For)
        ]
        found = self._written_count(loops)
        epochs = self._epochs(loops)
        if found is None:
            found = self._loop_count(loops)
        iteration, length, line = found
        self.findings.add("iteration", iteration, line)
        self.findings.add("steps of an epoch", length, line)
        self.findings.add("epochs", epochs, loops[0].lineno)
        return {"iteration": iteration, "length": length, "epochs": epochs}

    def _written_count(self, loops: Sequence[ast.For]) -> tuple[str, str, int] | None:
        """``iters = epoch * len(loader) + i`` of the script."""
        for place in self.flow.places:
            statement = place.statement
            inside = loops and any(around is loops[-1] for around, _ in place.around)
            if (
                not inside
                or place.function != self.target.function
                or not isinstance(statement, ast.Assign)
                or len(statement.targets) != 1
            ):
                continue
            product = _count_of(statement.value, place.env)
            length = self._length(product, place.env) if product is not None else None
            if length is None:
                continue
            name, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
            held = self.target.env.get(name)
            bound = held is not None and held.node is statement.value
            visible = {
                node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)
            } <= self.target.env.keys() | {"len"}
            if bound or visible:
                return (name if bound else value), length, statement.lineno
        return None

    def _length(self, node: ast.expr, env: Env) -> str | None:
        """Code of an epoch's length where the plug-in is made."""
        inner = (
            node.args[0] if isinstance(node, ast.Call) and dotted(node.func) == "len" and len(node.args) == 1 else None
        )
        value = env.get(dotted(inner if inner is not None else node))
        names = names_of(value, self.env) if value is not None else []
        if not names:
            return None
        return f"len({names[0]})" if inner is not None else names[0]

    def _loop_count(self, loops: Sequence[ast.For]) -> tuple[str, str, int]:
        """From the loops themselves."""
        if len(loops) < 2:
            raise Lacking(
                Missing(
                    "iteration",
                    "no loop over epochs around the loop over batches",
                    by_hand="iteration = epoch * len(loader) + i",
                )
            )
        counts = [self._counter(loop) for loop in loops]
        loaders = self._loaders(loops[-1])
        if counts[0] is None or counts[-1] is None or not loaders:
            reason = f"`for {ast.unparse(loops[-1].target)} in {ast.unparse(loops[-1].iter)}` counts no steps"
            hint = f"for i, {ast.unparse(loops[-1].target)} in enumerate({ast.unparse(loops[-1].iter)}):"
            raise Lacking(Missing("iteration", reason, [(loops[-1].lineno, ast.unparse(loops[-1].iter))], hint))
        length = f"len({loaders[0]})" if len(loaders) == 1 else f"min({', '.join(f'len({one})' for one in loaders)})"
        own = [name for one in loaders for name in sorted(names_of(self.env[one], self.target.env), key=one.__ne__)[:1]]
        here = f"len({own[0]})" if len(own) == 1 else f"min({', '.join(f'len({one})' for one in own)})"
        return f"{counts[0]} * {here} + {counts[-1]}", length, loops[-1].lineno

    def _counter(self, loop: ast.For) -> str | None:
        """Name of a loop's count that the step sees."""
        inside = place_of(self.flow, loop.body[0]).env
        for node in ast.walk(loop.target):
            if isinstance(node, ast.Name):
                value = inside.get(node.id)
                names = names_of(value, self.target.env) if value is not None and value.op == "count" else []
                if names:
                    return names[0]
        return None

    def _loaders(self, loop: ast.For) -> list[str]:
        """Names of the loaders that a loop goes through, where the plug-in is made."""
        inside = place_of(self.flow, loop.body[0]).env
        items = [
            value for name, held in inside.items() for value in held if value.op == "item" and name in _targets(loop)
        ]
        names = [name for item in items for name in names_of(item.args[0], self.env)[:1]]
        return list(dict.fromkeys(names))

    def _epochs(self, loops: Sequence[ast.For]) -> str:
        call = loops[0].iter if loops else None
        while isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("tqdm", "track") and call.args:
            call = call.args[0]
        if not isinstance(call, ast.Call) or dotted(call.func) not in ("range", "trange") or not call.args:
            near = [(loops[0].lineno, ast.unparse(loops[0].iter))] if loops else []
            raise Lacking(
                Missing("epochs", "expected `for epoch in range(...)` around the training", near, "epochs=...")
            )
        return ast.unparse(call.args[1] if len(call.args) > 1 else call.args[0])

    def _settings(self) -> dict[str, str]:
        """The yaml's values, the command line's, and the logger."""
        found = {}
        tree = [place.statement for place in self.flow.places]
        uses: dict[str, int] = {}
        for statement in tree:
            for node in ast.walk(statement) if not hasattr(statement, "body") else ():
                if (
                    isinstance(node, ast.Subscript)
                    and isinstance(node.slice, ast.Constant)
                    and isinstance(node.slice.value, str)
                ):
                    uses[dotted(node.value)] = uses.get(dotted(node.value), 0) + 1
        loaded = [name for name, value in self.env.items() if _is_settings(value)]
        if loaded:
            name = max(loaded, key=lambda name: uses.get(name, 0))
            found["cfg"] = self.findings.add("settings", name, _line(self.env[name]))
        for name, value in self.env.items():
            made = str(value.detail) if value.op == "call" else ""
            if made.endswith("parse_args"):
                found["args"] = name
            if made.rpartition(".")[2] in ("init_log", "getLogger", "get_logger", "get_root_logger"):
                found["logger"] = name
        return found

    def options(self) -> set[str]:
        """Options of the command line."""
        found = set()
        for place in self.flow.places:
            for node in ast.walk(place.statement) if not hasattr(place.statement, "body") else ():
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "add_argument"
                ):
                    texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                    found |= {str(text).lstrip("-").replace("-", "_") for text in texts}
        return found

    # checkpoints

    def _checkpoints(self, found: Surroundings) -> None:
        self._resume(found)
        saves = list(self._saves())
        for place, path, state, line in saves:
            epoch = self._saved_epoch(state, place)
            path = _without(path, found.names.get("score", ""))
            found.insertions.append(Insertion(place.statement, f"brpg.save({path}, {epoch})", before=True))
            self.findings.add("checkpoint", path, line, note=f"of epoch `{epoch}`")
            found.names.setdefault("saved", path)
        if not saves:
            reason = "nothing is saved after the step; the prototypes are then lost with the process"
            self.findings.lack("checkpoint", reason, by_hand="brpg.save('latest.pth', epoch)  # before torch.save")

    def _resume(self, found: Surroundings) -> None:
        inside = [place for place in self._between() if isinstance(place.statement, ast.Assign)]
        for place in inside:
            statement = place.statement
            assert isinstance(statement, ast.Assign)
            call = statement.value
            epoch = self._loaded_epoch(statement) if _is_load(call) else None
            if epoch is None or not isinstance(call, ast.Call):
                continue
            path = ast.unparse(call.args[0])
            found.insertions.append(Insertion(statement, f"brpg.load({path}, {epoch})", before=False))
            self.findings.add("resume", path, statement.lineno, note=f"at epoch `{epoch}`")
            found.resumes_with = call
            return
        early = [
            place
            for place in self.flow.places
            if place.function == self.place.function and isinstance(place.statement, ast.Assign)
        ]
        early = [
            place
            for place in early
            if _is_load(place.statement.value) and self._loaded_epoch(place.statement) is not None
        ]  # type: ignore[attr-defined,arg-type]
        near = [(place.statement.lineno, ast.unparse(place.statement)) for place in early]
        if near:
            reason = "the script resumes before networks and optimizer are what the training uses"
            by_hand = "brpg.load(PATH, EPOCH)  # after brpg is made"
            self.findings.lack("resume", reason, near=near, by_hand=by_hand)
        else:
            self.findings.lack(
                "resume",
                "the script loads no checkpoint with an epoch; a resumed run starts without prototypes",
                by_hand="brpg.load(PATH, EPOCH)",
            )

    def _between(self) -> list[Place]:
        """Places after the plug-in is made and before the loop."""
        start, end = self.flow.places.index(self.place), self.flow.places.index(self.loop)
        return [place for place in self.flow.places[start:end] if place.function == self.place.function]

    def _loaded_epoch(self, statement: ast.Assign) -> str | None:
        """Code of the epoch in what a statement loads."""
        (target, *_) = statement.targets
        first = (
            self.loop.statement.iter.args[0]
            if isinstance(self.loop.statement, ast.For)
            and isinstance(self.loop.statement.iter, ast.Call)
            and self.loop.statement.iter.args
            else None
        )
        starts = {node.id for node in ast.walk(first) if isinstance(node, ast.Name)} if first is not None else set()
        if isinstance(target, ast.Tuple):
            names = [ast.unparse(element) for element in target.elts]
            return next((name for name in names if name in starts), None)
        name = ast.unparse(target)
        keys = [key for place in self.flow.places for key in _keys(place.statement, name)]
        saved = (
            [
                key
                for _, _, state, _ in self._saves()
                for inner in state or ()
                if inner.op == "dict"
                for key in inner.detail
            ]
            if None in keys
            else []
        )
        texts = [key for key in (*keys, *saved) if isinstance(key, str)]
        return next((f"{name}[{key!r}]" for key in texts if "epoch" in key.lower() and "best" not in key.lower()), None)

    def _saves(self) -> Iterator[tuple[Place, str, Value | None, int]]:
        """Statements of the training loop that save, with path and state; in own functions, the calls of those."""
        seen = set()
        for place in self.flow.places[self.flow.places.index(self.loop) :]:
            statement = place.statement
            call = statement.value if isinstance(statement, ast.Expr) else None
            if not isinstance(call, ast.Call) or id(statement) in seen or not _is_save(call):
                continue
            seen.add(id(statement))
            if place.depth == self.main.depth or place.function == self.target.function:
                path = ast.unparse(call.args[1])
                yield place, path, place.env.get(dotted(call.args[0])), statement.lineno
            else:
                yield from self._caller(place, call)

    def _caller(self, place: Place, call: ast.Call) -> Iterator[tuple[Place, str, Value | None, int]]:
        at = self.flow.places.index(place)
        callers = [
            other
            for other in self.flow.places[:at]
            if other.depth == self.main.depth and not hasattr(other.statement, "body")
        ]
        if not callers or dotted(call.args[1]) not in place.env:
            return
        caller, wanted = callers[-1], place.env[dotted(call.args[1])]
        for node in ast.walk(caller.statement):
            if isinstance(node, ast.Call) and dotted(node.func) == place.function:
                for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                    if wanted.node is argument or (
                        names_of(wanted, {"_": caller.env.get(dotted(argument), wanted)}) and dotted(argument)
                    ):
                        yield (
                            caller,
                            ast.unparse(argument),
                            place.env.get(dotted(call.args[0])),
                            caller.statement.lineno,
                        )
                        return

    def _saved_epoch(self, state: Value | None, place: Place) -> str:
        for inner in state or ():
            for key, value in zip(inner.detail, inner.args, strict=True) if inner.op == "dict" else ():
                if key == "epoch" and isinstance(value.node, ast.expr):
                    return self._epoch_code(inner, value, place)
        return self.epoch_name()

    def _epoch_code(self, state: Value, value: Value, place: Place) -> str:
        assert isinstance(state.node, ast.Dict)
        for key, node in zip(state.node.keys, state.node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "epoch":
                return ast.unparse(node)
        return names_of(value, place.env)[0]

    # logging and scores

    def _logging(self, found: Surroundings) -> None:
        inner = [statement for statement, _ in self.target.around if isinstance(statement, ast.For | ast.While)]
        around = [statement for statement, _ in self.target.around]
        inside = [
            place
            for place in self.flow.places
            if place.function == self.target.function and inner and inner[-1] in [s for s, _ in place.around]
        ]
        after = [place for place in inside if place.statement.lineno > self.target.statement.lineno]
        calls = [
            (place, place.statement.value)
            for place in after
            if isinstance(place.statement, ast.Expr) and isinstance(place.statement.value, ast.Call)
        ]
        scalars = [
            (place, call)
            for place, call in calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "add_scalar"
        ]
        if scalars:
            place, call = scalars[-1]
            step = (
                call.args[2]
                if len(call.args) > 2
                else next((k.value for k in call.keywords if k.arg == "global_step"), None)
            )
            writer = ast.unparse(call.func.value)  # type: ignore[attr-defined]
            code = f"brpg.log({writer}, {ast.unparse(step) if step is not None else found.names['iteration']})"
            loops = [one for one, _ in place.around if isinstance(one, ast.For | ast.While) and one not in around]
            found.insertions.append(Insertion(loops[0] if loops else place.statement, code, before=False))
            self.findings.add("logging", writer, place.statement.lineno)
            return
        metrics = [
            (place, call)
            for place, call in calls
            if isinstance(call.func, ast.Attribute) and call.func.attr in WRITES and _takes_numbers(call, place)
        ]
        if metrics:
            place, call = metrics[-1]
            step = next((k.value for k in call.keywords if k.arg == "step"), None)
            how = (
                f"step={ast.unparse(step)}"
                if step is not None
                else ("commit=False" if dotted(call.func) == "wandb.log" else "")
            )
            code = f"{ast.unparse(call.func)}({', '.join(filter(None, ('brpg.scalars()', how)))})"
            found.insertions.append(Insertion(place.statement, code, before=True))
            self.findings.add("logging", ast.unparse(call.func), place.statement.lineno)
            return
        self.findings.lack(
            "logging",
            "no add_scalar() or log({...}) after the step",
            by_hand="print(brpg.scalars())  # after optimizer.step()",
        )

    def _scores(self, found: Surroundings) -> None:
        """The validation's scores, for ``brpg compare``."""
        scores = self._validated() or self._best()
        if scores is None:
            self.findings.lack(
                "scores",
                "no number is compared with the best so far",
                by_hand="brpg.record(FOLDER, epoch, MIOU, settings={})",
            )
            return
        score, others, statement = scores
        found.names |= {"score": score} | ({"others": others[0]} if others else {})
        self.findings.add("scores", score, statement.lineno)
        self.scored = self._after_scores(score, statement)

    def _epoch_places(self) -> list[Place]:
        """Statements after the steps of an epoch, that each epoch comes by."""
        at = self.flow.places.index(self.target)
        inner = {id(statement) for statement, _ in self.target.around} - {id(statement) for statement, _ in self.main.around}
        return [
            place
            for place in self.flow.places[at + 1 :]
            if place.function == self.main.function
            and self.loop.statement in [statement for statement, _ in place.around]
            and not inner & {id(statement) for statement, _ in place.around} - {id(self.loop.statement)}
        ]

    def _validated(self) -> tuple[str, list[str], ast.stmt] | None:
        """``score, ... = evaluate(model, ...)``: the last one of which a number counts."""
        networks = {name for name in self.flow.networks if name in self.main.env}
        found = None
        for place in self._epoch_places():
            statement = place.statement
            call = statement.value if isinstance(statement, ast.Assign) else None
            if not isinstance(call, ast.Call) or not any(networks & _names(arg) for arg in call.args):
                continue
            if not dotted(call.func).rpartition(".")[2].startswith(("eval", "val", "test")):
                continue
            target = statement.targets[0]  # type: ignore[attr-defined]
            names = [ast.unparse(one) for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
            numbers = [name for name in names if self._is_compared(name)]
            if numbers:
                found = numbers[0], [name for name in names if name != numbers[0]], statement
        return found

    def _best(self) -> tuple[str, list[str], ast.stmt] | None:
        """A number that is made after the steps of an epoch, and compared with another there."""
        found = None
        for place in self._epoch_places():
            statement = place.statement
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if len(targets) == 1 and isinstance(targets[0], ast.Name) and self._is_compared(targets[0].id):
                if self.target.env.get(targets[0].id) is None:
                    found = targets[0].id, [], statement
        if found is None:
            return None
        score, _, statement = found
        env = self.flow.places[-1].env
        base = env[score].args[0] if score in env and env[score].op == "part" else None
        others = [name for name, held in env.items() if name != score and held.op == "part" and held.args[0] is base]
        made = [place.statement for place in self._epoch_places() if _binds(place.statement, others)]
        return score, others, made[-1] if made else statement

    def _is_compared(self, name: str) -> bool:
        """Whether the script compares a number, or one of several, with another."""
        for place in self.flow.places[self.flow.places.index(self.loop) :]:
            for node in ast.walk(place.statement):
                sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
                sides += node.args if isinstance(node, ast.Call) and dotted(node.func) == "max" else []
                if any(dotted(side.value if isinstance(side, ast.Subscript) else side) == name for side in sides):
                    return True
        return False

    def _after_scores(self, score: str, statement: ast.stmt) -> Insertion:
        """Where the scores are written: after they are logged, or where they are made."""
        logged = [
            place.statement
            for place in self._epoch_places()
            if isinstance(place.statement, ast.Expr) and _logs(place.statement.value, score)
        ]
        return Insertion(logged[0] if logged else statement, "", before=False)


def _binds(statement: ast.stmt, names: Sequence[str]) -> bool:
    return isinstance(statement, ast.Assign) and any(dotted(target) in names for target in statement.targets)


def _without(path: str, score: str) -> str:
    """A path whose last part names a score, with the name ``best.pth`` there: of several checkpoints, one is kept."""
    call = ast.parse(path, mode="eval").body
    if not isinstance(call, ast.Call) or len(call.args) < 2 or score not in _names(call.args[-1]):
        return path
    return ast.unparse(ast.Call(call.func, [*call.args[:-1], ast.Constant("best.pth")], []))


def _logs(node: ast.expr, score: str) -> bool:
    """``writer.add_scalar(..., score, ...)``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "add_scalar":
        return False
    return len(node.args) > 1 and ast.unparse(node.args[1]) == score


def _line(value: Value | None) -> int:
    return int(getattr(value.node, "lineno", 0)) if value is not None else 0


def _is_load(node: ast.AST) -> bool:
    name = dotted(node.func).rpartition(".")[2] if isinstance(node, ast.Call) and node.args else ""
    return name in ("load", "load_state", "load_checkpoint", "resume", "load_ckpt") and dotted(node.func).split(".")[
        0
    ] not in ("yaml", "json", "np", "pickle")  # type: ignore[attr-defined]


def _is_save(call: ast.Call) -> bool:
    return (
        dotted(call.func).rpartition(".")[2] == "save"
        and len(call.args) >= 2
        and dotted(call.func).split(".")[0] not in ("np", "brpg")
    )


def _is_settings(value: Value) -> bool:
    if value.op != "call":
        return False
    name = str(value.detail).lower()
    return name.startswith(("yaml.", "json.", "omegaconf", "config.")) or name in (
        "safe_load",
        ".load",
        "get_config",
        "load_config",
    )


def _is_parallel(name: str) -> bool:
    return any(word in name.lower() for word in ("parallel", "ddp", ".prepare"))


def _wraps(value: Value | None) -> Iterator[Value]:
    """The calls that made a network of a network, the outermost first."""
    while value is not None and value.op in ("call", "part", "either", "same", "tuple"):
        yield value
        inner = [arg for arg in value.args if arg.op in ("call", "part", "either", "tuple")]
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


def _count_of(node: ast.expr, env: Env) -> ast.expr | None:
    """The length in ``epoch * length + i``."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for product, rest in ((node.left, node.right), (node.right, node.left)):
        if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult) and _is_count(rest, env):
            for one, other in ((product.left, product.right), (product.right, product.left)):
                if _is_count(one, env):
                    return other
    return None


def _is_count(node: ast.expr, env: Env) -> bool:
    value = env.get(dotted(node))
    return value is not None and value.op == "count"


def _keys(statement: ast.stmt, name: str) -> Iterator[str | None]:
    """Keys that a statement reads of a dictionary; ``None`` for one that is no constant."""
    for node in ast.walk(statement) if not hasattr(statement, "body") else ():
        if isinstance(node, ast.Subscript) and dotted(node.value) == name:
            yield str(node.slice.value) if isinstance(node.slice, ast.Constant) else None
        if (
            isinstance(node, ast.Call)
            and dotted(node.func) == f"{name}.get"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def _takes_numbers(call: ast.Call, place: Place) -> bool:
    first = call.args[0] if call.args else None
    held = place.env.get(dotted(first)) if first is not None else None
    return isinstance(first, ast.Dict) or (held is not None and held.op in ("dict", "call"))


def _targets(loop: ast.For) -> set[str]:
    return {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
