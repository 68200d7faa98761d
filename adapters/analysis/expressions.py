"""Values of expressions: of calls, what is understood of them."""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from .names import OWN, Names, tuple_of
from .values import Value, dotted

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
DEPTH = 4
"""Calls within calls that are followed."""


class Expressions(Names):
    """Values of expressions."""

    def value(self, node: ast.AST) -> Value:
        """See :class:`Names`."""
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
        return tuple_of(self._elements(node.elts), node)

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
            return tuple_of(found, node)
        every = values.op == "item" or (values.op == "part" and not others)
        return Value("each" if every else "call", (values, *found), "comprehension", node)

    _generatorexp_value = _listcomp_value

    def _yield_value(self, node: ast.Yield) -> Value:
        if node.value is not None:
            self.yielded.append(self.value(node.value))
        return Value("const", (), None, node)

    def _yieldfrom_value(self, node: ast.YieldFrom) -> Value:
        self.yielded.append(self.item(self.value(node.value), node))
        return Value("const", (), None, node)

    def _attribute_value(self, node: ast.Attribute) -> Value:
        name = dotted(node)
        held = self.env.get(name) or (self.globals.get(name) if name.startswith(OWN) else None)
        if held is not None:
            return held
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
        if name in self.flow.networks or id(self.env.get(name, self.globals.get(name))) in self.known:
            return self._record(
                Value(
                    "forward",
                    (self._name(name), *arguments, *keywords.values()),
                    (name, self.grad, len(arguments)),
                    node,
                )
            )
        if name in self.functions and len(self.active) < DEPTH and name not in self.active:
            own = [self._name("self")] if name.startswith(OWN) else []
            function = self.functions[name]
            if is_generator(function):
                return Value("generator", (*own, *arguments, *keywords.values()), (function, tuple(keywords)), node)
            return self.enter(function, [*own, *arguments], keywords)
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

    @abstractmethod
    def enter(self, function: ast.FunctionDef, arguments: Sequence[Value], keywords: dict[str, Value]) -> Value:
        """Follow a call of one of the script's functions; what it returns."""


def is_generator(function: ast.FunctionDef) -> bool:
    """Whether a function yields."""
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))


def _classes_axis(node: ast.Call, skipped: int) -> bool:
    """Whether a reduction is along one axis."""
    return len(node.args) > skipped or any(keyword.arg in ("dim", "axis") for keyword in node.keywords)


def _everything(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is Ellipsis
    return isinstance(node, ast.Slice) and node.lower is None and node.upper is None and node.step is None
