"""What names hold: values are assigned, taken apart, and gone through."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .values import Env, Flow, Place, Value, dotted

PASSED_ON = {"tqdm", "iter", "cycle", "trange", "list", "prefetch", "track", "prepare"}


ENDLESS = "endless"
"""Detail of a loader's item that comes of going through the loader again and again."""
OWN = "self."
"""What names of an object's attributes and methods begin with: all of its methods share them."""
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


class Names(ABC):
    """The names of a script while it is followed."""

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
        self.yielded: list[Value] = []
        self.endless = False

    @abstractmethod
    def value(self, node: ast.AST) -> Value:
        """What an expression gives."""

    def _visible(self) -> Env:
        return self.env.copy() if self.env is self.globals else {**self.globals, **self.env}

    def _set(self, env: Env) -> None:
        self.env.clear()
        self.env.update(env)

    def assign(self, target: ast.expr, value: Value) -> None:
        """Let a name, or what a pattern takes apart, hold a value."""
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
            shared = dotted(target) in self.shared or dotted(target).startswith(OWN)
            (self.globals if shared else self.env)[dotted(target)] = value

    def part(self, value: Value, index: Any, node: ast.AST, count: int = 0) -> Value:
        """One of several results."""
        if value.op in ("tuple", "dict") and value.detail is not None and index in value.detail:
            held: Value = value.args[value.detail.index(index)]
            return held
        if value.op == "best" and index in (0, 1, "values", "indices"):
            return Value("confidence" if index in (0, "values") else "label", value.args, None, node)
        if value.op == "either":
            return replace(value, args=tuple(self.part(arg, index, node, count) for arg in value.args))
        return Value("part", (value,), (index, count), node)

    def item(self, value: Value, node: ast.AST) -> Value:
        """What iterating gives."""
        name = str(value.detail).rpartition(".")[2] if value.op == "call" else ""
        if name == "enumerate":
            return tuple_of([Value("count", value.args, "enumerate", node), self.item(value.args[0], node)], node)
        if name == "zip":
            return tuple_of([self.item(arg, node) for arg in value.args], node)
        if name in ("range", "trange"):
            return Value("count", value.args, "range", node)
        if value.op == "generator":
            return self.resume(value)
        if name in PASSED_ON and value.args:
            outer, self.endless = self.endless, self.endless or name == "cycle"
            found = self.item(value.args[0], node)
            self.endless = outer
            return found
        return Value("item", (value,), ENDLESS if self.endless else None, node)

    @abstractmethod
    def resume(self, generator: Value) -> Value:
        """What a generator of the script's own yields."""


def tuple_of(values: Sequence[Value], node: ast.AST) -> Value:
    """Several values."""
    return Value("tuple", tuple(values), tuple(range(len(values))), node)


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
