"""Which value each name of a script holds: its statements are followed in order, without running any.

Values are nodes of a graph: what made them (``op``), of which other values. The training loop's body is followed once,
calls of the script's own functions are followed into them, both branches of an ``if`` are followed and joined. What is
not understood is a ``call`` or ``compute`` of its arguments, so nothing of the graph is guessed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

KEPT = {
    "cuda",
    "cpu",
    "to",
    "float",
    "half",
    "bfloat16",
    "double",
    "long",
    "int",
    "byte",
    "type",
    "contiguous",
    "clone",
    "squeeze",
    "unsqueeze",
    "expand",
    "view",
}
"""Methods whose result shows the same pixels."""
CLASSWISE = {"softmax", "log_softmax", "sigmoid", "exp"}
RESIZED = {"interpolate", "upsample", "resize", "resized"}
PASSED_ON = {"tqdm", "iter", "cycle", "trange", "list", "prefetch", "track", "prepare"}
NETWORK = {
    "train",
    "eval",
    "parameters",
    "named_parameters",
    "state_dict",
    "module",
    "requires_grad_",
    "load_state_dict",
    "no_sync",
}
DEPTH = 4
"""Calls within calls that are followed."""
UNROLLED = 8
"""Longest tuple whose loop is followed once for each of its values."""
Env = dict[str, "Value"]


@dataclass(frozen=True, eq=False)
class Value:
    """What an expression gives.

    Attributes:
        op: What made it, such as ``cat``, ``forward``, ``label`` (of the most probable class), ``call``.
        args: Of which values.
        detail: What else tells it from others of its kind.
        node: The expression.
    """

    op: str
    args: tuple[Value, ...] = ()
    detail: Any = None
    node: ast.AST | None = None

    def __iter__(self) -> Iterator[Value]:
        """Itself and all it is made of, each once, itself first."""
        seen, waiting = set[int](), [self]
        while waiting:
            value = waiting.pop()
            if id(value) not in seen:
                seen.add(id(value))
                yield value
                waiting += reversed(value.args)


@dataclass(frozen=True)
class Place:
    """A statement where the flow came by.

    Attributes:
        statement: It.
        function: The function that holds it; empty at the top.
        env: What each visible name holds before it.
        around: The compound statements around it, each with the block (``body``, ``orelse``) it is in, outermost first.
        block: The statements that it stands among.
        depth: Calls between the script's start and it.
    """

    statement: ast.stmt
    function: str
    env: Env
    around: tuple[tuple[ast.stmt, str], ...]
    block: Sequence[ast.stmt]
    depth: int


@dataclass
class Flow:
    """The flow through a script.

    Attributes:
        places: Statements in the order they were met.
        calls: Calls that are not understood, and forward passes, in order, each with its place.
        compared: Values that are compared with a number, with that number.
        networks: Names that are used as networks are.
    """

    places: list[Place] = field(default_factory=list)
    compared: list[tuple[Value, Any]] = field(default_factory=list)
    calls: list[tuple[Value, Place]] = field(default_factory=list)
    networks: set[str] = field(default_factory=set)

    def forwards(self) -> list[tuple[Value, Place]]:
        """Forward passes in order."""
        return [(value, place) for value, place in self.calls if value.op == "forward"]


def follow(tree: ast.Module) -> Flow:
    """The flow through a script: from its top, then through functions and methods that nothing of it calls."""
    walker = _Walker(tree)
    walker.block(tree.body)
    methods = [
        node
        for owner in tree.body
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    ]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    waiting = [function for name, function in walker.functions.items() if name not in used]
    for function in (*waiting, *walker.functions.values(), *methods):
        if function not in walker.entered and any(
            isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(tree)
        ):
            walker.enter(function, [], {})
    return walker.flow


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; empty for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def network_names(tree: ast.Module) -> set[str]:
    """Names that are called, and have methods of a network called or read; optimizers step as well."""
    used: dict[str, set[str]] = {}
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.setdefault(dotted(node.value), set()).add(node.attr)
        if isinstance(node, ast.Call):
            called.add(dotted(node.func))
            called |= {dotted(argument) for argument in node.args}
    return {
        name
        for name, attributes in used.items()
        if name in called and attributes & NETWORK and "step" not in attributes
    } - {""}


def _classes_axis(node: ast.Call, skipped: int) -> bool:
    """Whether a reduction is along one axis."""
    return len(node.args) > skipped or any(keyword.arg in ("dim", "axis") for keyword in node.keywords)


class _Walker:
    def __init__(self, tree: ast.Module) -> None:
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.flow = Flow(networks=network_names(tree))
        self.env: Env = {}
        self.globals = self.env
        self.function, self.depth, self.grad = "", 0, True
        self.around: tuple[tuple[ast.stmt, str], ...] = ()
        self.here: Place | None = None
        self.returned: list[Value] = []
        self.shared: set[str] = set()
        self.known: set[int] = set()
        self.active: list[str] = []
        self.entered: list[ast.FunctionDef] = []

    # statements

    def block(self, body: Sequence[ast.stmt], around: tuple[ast.stmt, str] | None = None) -> bool:
        """Follow statements; whether they leave the block early."""
        outer = self.around
        if around is not None:
            self.around = (*outer, around)
        left = False
        for statement in body:
            place = Place(statement, self.function, self._visible(), self.around, body, self.depth)
            self.flow.places.append(place)
            self.here = place
            left = self._statement(statement) or left
            if left:
                break
        self.around = outer
        return left

    def _visible(self) -> Env:
        return self.env.copy() if self.env is self.globals else {**self.globals, **self.env}

    def _statement(self, node: ast.stmt) -> bool:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is not None:
            return bool(handler(node))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return isinstance(node, ast.Return | ast.Continue | ast.Break | ast.Raise)

    def _functiondef(self, node: ast.FunctionDef) -> None:
        self.functions[node.name] = node

    def _global(self, node: ast.Global) -> None:
        self.shared |= set(node.names)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = (alias.asname or alias.name).split(".")[0]
            self.env[name] = Value("import", (), f"{getattr(node, 'module', None) or ''}.{alias.name}".strip("."), node)

    _importfrom = _import

    def _assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def _annassign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def _augassign(self, node: ast.AugAssign) -> None:
        old, new = self.value(node.target), self.value(node.value)
        self.assign(node.target, Value("compute", (old, new), type(node.op).__name__, node))

    def _return(self, node: ast.Return) -> bool:
        self.returned.append(self.value(node.value) if node.value is not None else Value("const", (), None, node))
        return True

    def _if(self, node: ast.If) -> bool:
        self.value(node.test)
        before = dict(self.env)
        left = [self.block(node.body, (node, "body"))]
        taken = dict(self.env)
        self._set(before)
        left.append(self.block(node.orelse, (node, "orelse")))
        if left[0] or left[1]:
            self._set(dict(self.env) if left[0] else taken)
            return all(left)
        other, joined = dict(self.env), {}
        for name in taken.keys() | other.keys():
            one, two = taken.get(name), other.get(name)
            parts = tuple(value for value in (one, two) if value is not None)
            same = one is two
            joined[name] = parts[0] if same else Value("either", parts, (node, one is not None, two is not None), node)
        self._set(joined)
        return False

    def _set(self, env: Env) -> None:
        self.env.clear()
        self.env.update(env)

    def _with(self, node: ast.With) -> bool:
        grad = self.grad
        for item in node.items:
            context = self.value(item.context_expr)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, context)
            if without_gradient(item.context_expr):
                self.grad = False
        left = self.block(node.body, (node, "body"))
        self.grad = grad
        return left

    def _for(self, node: ast.For) -> None:
        values = self.value(node.iter)
        known = values.args if values.op == "tuple" and 0 < len(values.args) <= UNROLLED else ()
        for item in known or [self.item(values, node.target)]:
            self.assign(node.target, item)
            self.block(node.body, (node, "body"))
        self.block(node.orelse, (node, "orelse"))

    def _while(self, node: ast.While) -> None:
        self.value(node.test)
        self.block(node.body, (node, "body"))

    def _try(self, node: ast.Try) -> None:
        for part in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
            self.block(part, (node, "body"))

    # names

    def assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            count = len(target.elts)
            for index, element in enumerate(target.elts):
                inner = element.value if isinstance(element, ast.Starred) else element
                self.assign(inner, self.part(value, index, element, count))
        elif isinstance(target, ast.Subscript):
            base = dotted(target.value)
            if base in self.env:
                self.env[base] = Value("stored", (self.env[base], self.value(target.slice), value), None, target)
        elif dotted(target):
            copied = value.op == "call" and str(value.detail).endswith("deepcopy") and id(value.args[0]) in self.known
            if dotted(target) in self.flow.networks or copied:
                self.known.add(id(value))
            (self.globals if dotted(target) in self.shared else self.env)[dotted(target)] = value

    def part(self, value: Value, index: Any, node: ast.AST, count: int = 0) -> Value:
        """One of several results."""
        if value.op in ("tuple", "dict") and value.detail is not None and index in value.detail:
            return value.args[value.detail.index(index)]
        if value.op == "best" and index in (0, 1, "values", "indices"):
            return Value("confidence" if index in (0, "values") else "label", value.args, None, node)
        if value.op == "either":
            return replace(value, args=tuple(self.part(arg, index, node, count) for arg in value.args))
        return Value("part", (value,), (index, count), node)

    def item(self, value: Value, node: ast.AST) -> Value:
        """What iterating gives."""
        name = str(value.detail).rpartition(".")[2] if value.op == "call" else ""
        if name == "enumerate":
            return _tuple([Value("count", value.args, "enumerate", node), self.item(value.args[0], node)], node)
        if name == "zip":
            return _tuple([self.item(arg, node) for arg in value.args], node)
        if name in ("range", "trange"):
            return Value("count", value.args, "range", node)
        if name in PASSED_ON and value.args:
            return self.item(value.args[0], node)
        return Value("item", (value,), None, node)

    # expressions

    def value(self, node: ast.AST) -> Value:
        handler = getattr(self, f"_{type(node).__name__.lower()}_value", None)
        if handler is not None:
            found: Value = handler(node)
            return found
        inner = [self.value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        kind = type(node.op).__name__ if isinstance(node, ast.BinOp | ast.UnaryOp | ast.BoolOp) else type(node).__name__
        return Value("compute", tuple(inner), kind, node)

    def _compare_value(self, node: ast.Compare) -> Value:
        sides = tuple(self.value(side) for side in (node.left, *node.comparators))
        for side in sides:
            self.flow.compared += [(side, other.detail) for other in sides if other.op == "const"]
        return Value("compute", sides, "Compare", node)

    def _constant_value(self, node: ast.Constant) -> Value:
        return Value("const", (), node.value, node)

    def _name_value(self, node: ast.Name) -> Value:
        found = self.env.get(node.id) or self.globals.get(node.id)
        return found if found is not None else Value("name", (), node.id, node)

    def _name(self, name: str) -> Value:
        return self.value(ast.parse(name, mode="eval").body)

    def _starred_value(self, node: ast.Starred) -> Value:
        return self.value(node.value)

    def _tuple_value(self, node: ast.Tuple | ast.List) -> Value:
        return _tuple(self._elements(node.elts), node)

    _list_value = _tuple_value

    def _elements(self, nodes: Iterable[ast.expr]) -> list[Value]:
        found = []
        for node in nodes:
            value = self.value(node)
            spread = isinstance(node, ast.Starred) and value.op == "tuple"
            found += list(value.args) if spread else [value]
        return found

    def _dict_value(self, node: ast.Dict) -> Value:
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return Value("dict", tuple(self.value(value) for value in node.values), tuple(keys), node)

    def _ifexp_value(self, node: ast.IfExp) -> Value:
        return Value("either", (self.value(node.body), self.value(node.orelse)), (node, True, True), node)

    def _listcomp_value(self, node: ast.ListComp | ast.GeneratorExp) -> Value:
        before = dict(self.env)
        (first, *others) = node.generators
        values = self.value(first.iter)
        plain = values.op == "tuple" and not others and not first.ifs
        found = []
        for item in values.args if plain else [self.item(values, first.target)]:
            self.assign(first.target, item)
            for generator in others:
                self.assign(generator.target, self.item(self.value(generator.iter), generator.target))
            found.append(self.value(node.elt))
        self._set(before)
        if plain:
            return _tuple(found, node)
        every = values.op == "item" or (values.op == "part" and not others)
        return Value("each" if every else "call", (values, *found), "comprehension", node)

    _generatorexp_value = _listcomp_value

    def _attribute_value(self, node: ast.Attribute) -> Value:
        name = dotted(node)
        if name in self.env:
            return self.env[name]
        base = self.value(node.value)
        if node.attr == "shape":
            return Value("shape", (base,), None, node)
        if node.attr == "data":
            return Value("detach", (base,), "data", node)
        if node.attr in ("values", "indices"):
            return self.part(base, node.attr, node)
        return Value("attribute", (base,), node.attr, node)

    def _subscript_value(self, node: ast.Subscript) -> Value:
        base = self.value(node.value)
        index = node.slice
        if isinstance(index, ast.Tuple) and index.elts and all(_everything(element) for element in index.elts[1:]):
            index = index.elts[0]
        if isinstance(index, ast.Slice):
            if _everything(index):
                return base
            ends = tuple(self.value(end) if end is not None else Value("const") for end in (index.lower, index.upper))
            return Value("slice", (base, *ends), None, node)
        if isinstance(index, ast.Constant):
            if base.op == "shape":
                return Value("size", base.args, index.value, node)
            return self.part(base, index.value, node)
        return Value("indexed", (base, self.value(index)), None, node)

    def _call_value(self, node: ast.Call) -> Value:
        name = dotted(node.func)
        if (
            isinstance(node.func, ast.Call)
            and isinstance(node.func.func, ast.Attribute)
            and node.func.func.attr in ("train", "eval")
        ):
            name = dotted(node.func.func.value)  # model.eval()(images)
        arguments = self._elements(node.args)
        keywords = {keyword.arg or "": self.value(keyword.value) for keyword in node.keywords}
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        if name in self.flow.networks or id(self.env.get(name)) in self.known:
            return self._record(
                Value(
                    "forward",
                    (self._name(name), *arguments, *keywords.values()),
                    (name, self.grad, len(arguments)),
                    node,
                )
            )
        if name in self.functions and len(self.active) < DEPTH and name not in self.active:
            return self.enter(self.functions[name], arguments, keywords)
        method = isinstance(node.func, ast.Attribute) and not self._is_module(node.func.value)
        subject = self.value(node.func.value) if method and isinstance(node.func, ast.Attribute) else None
        operands = ([subject] if subject is not None else []) + arguments
        understood = self._understood(last, operands, keywords, node, method) if operands else None
        if understood is not None:
            return understood
        if (
            last in ("append", "extend", "add", "update")
            and subject is not None
            and isinstance(node.func, ast.Attribute)
        ):
            owner = dotted(node.func.value)
            if owner in self.env and subject.op != "name":
                self.env[owner] = Value("call", (subject, *arguments), name, node)
        return self._record(
            Value("call", (*operands, *keywords.values()), f".{last}" if method else name or last, node)
        )

    def _is_module(self, node: ast.AST) -> bool:
        found = self.value(node) if dotted(node) else None
        while found is not None and found.op == "attribute":
            found = found.args[0]
        return (
            found is not None
            and found.op in ("import", "name")
            and dotted(node).split(".")[0] in ("torch", "F", "np", "nn", "functional", *self._imports())
        )

    def _imports(self) -> set[str]:
        return {name for name, value in self.globals.items() if value.op == "import"}

    def _understood(
        self, last: str, operands: Sequence[Value], keywords: dict[str, Value], node: ast.Call, method: bool
    ) -> Value | None:
        first = operands[0]
        if last in ("cat", "concat", "concatenate") and first.op in ("tuple",):
            return Value("cat", first.args, None, node)
        if last in KEPT and method:
            return Value("same", (first,), last, node)
        if last in CLASSWISE or last in RESIZED:
            return Value("same", (first,), last, node)
        if last == "detach":
            return Value("detach", (first,), last, node)
        if last in ("chunk", "split"):
            return Value("split", tuple(operands) + tuple(keywords.values()), last, node)
        if last in ("max", "amax", "argmax") and (_classes_axis(node, 0 if method else 1)):
            return Value({"max": "best", "amax": "confidence", "argmax": "label"}[last], (first,), None, node)
        if last == "size" and method:
            axis = operands[1].detail if len(operands) > 1 else None
            return Value("size", (first,), axis, node) if axis is not None else Value("shape", (first,), None, node)
        if last == "len":
            return Value("size", (first,), 0, node)
        if last in ("next", "__next__"):
            return self.item(first, node)
        return None

    def _record(self, value: Value) -> Value:
        if self.here is not None:
            self.flow.calls.append((value, self.here))
        return value

    def enter(self, function: ast.FunctionDef, arguments: Sequence[Value], keywords: dict[str, Value]) -> Value:
        """Follow a call of one of the script's functions; what it returns."""
        kept = self.env, self.function, self.around, self.here, self.returned, self.grad, self.shared
        self.env = dict(zip((arg.arg for arg in function.args.args), arguments, strict=False))
        self.env |= {name: value for name, value in keywords.items() if name}
        for arg in (*function.args.args, *function.args.kwonlyargs):
            self.env.setdefault(arg.arg, Value("name", (), arg.arg, arg))
        self.function, self.around, self.returned = function.name, (), []
        self.depth += 1
        self.active.append(function.name)
        self.entered.append(function)
        if any(without_gradient(decorator) for decorator in function.decorator_list):
            self.grad = False
        self.shared = set()
        self.block(function.body)
        returned = self.returned
        self.env, self.function, self.around, self.here, self.returned, self.grad, self.shared = kept
        self.depth -= 1
        self.active.pop()
        if len(returned) == 1:
            return returned[0]
        return (
            Value("either", tuple(returned), (function, True, True), function)
            if returned
            else Value("const", (), None, function)
        )


def without_gradient(node: ast.AST) -> bool:
    """Whether a context or decorator turns gradients off."""
    call = node.func if isinstance(node, ast.Call) else node
    name = dotted(call).rpartition(".")[2]
    if name == "set_grad_enabled" and isinstance(node, ast.Call) and node.args:
        return isinstance(node.args[0], ast.Constant) and node.args[0].value is False
    return name in ("no_grad", "inference_mode")


def _tuple(values: Sequence[Value], node: ast.AST) -> Value:
    return Value("tuple", tuple(values), tuple(range(len(values))), node)


def _everything(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is Ellipsis
    return isinstance(node, ast.Slice) and node.lower is None and node.upper is None and node.step is None
