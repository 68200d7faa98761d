"""Which value each name of a script holds: its statements are followed in order, without running any.

Values are nodes of a graph: what made them (``op``), of which other values. The training loop's body is followed once,
calls of the script's own functions are followed into them, both branches of an ``if`` are followed and joined. What is
not understood is a ``call`` or ``compute`` of its arguments, so nothing of the graph is guessed.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from .expressions import DEPTH, Expressions
from .names import OWN
from .values import BACKWARD, Flow, Place, Value, dotted

UNROLLED = 8
"""Longest tuple whose loop is followed once for each of its values."""


def follow(tree: ast.Module) -> Flow:
    """The flow through a script: from its top, then through functions and methods that nothing of it calls."""
    walker = _Walker(tree)
    walker.block(tree.body)
    if not _goes_backward(tree):
        return walker.flow
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    waiting = [function for name, function in walker.functions.items() if name not in used]
    for function in (*waiting, *list(walker.functions.values())):
        if function not in walker.entered:
            walker.enter(function, [], {})
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef) and _goes_backward(owner):
            walker.object(owner)
    return walker.flow


def _goes_backward(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in BACKWARD for node in ast.walk(tree))


class _Walker(Expressions):
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

    def _statement(self, node: ast.stmt) -> bool:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is not None:
            return bool(handler(node))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return isinstance(node, ast.Return | ast.Continue | ast.Break | ast.Raise)

    def object(self, owner: ast.ClassDef) -> None:
        """Follow how an object is made, then its methods that no other one calls."""
        methods = {node.name: node for node in owner.body if isinstance(node, ast.FunctionDef)}
        self.functions |= {OWN + name: method for name, method in methods.items()}
        called = {dotted(node.func) for node in ast.walk(owner) if isinstance(node, ast.Call)}
        first = [method for name, method in methods.items() if name == "__init__"]
        for method in (*first, *(method for name, method in methods.items() if OWN + name not in called)):
            if method not in self.entered:
                self.enter(method, [], {})

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

    def resume(self, generator: Value) -> Value:
        """See :class:`Names`: the function is followed anew for each item, which is another one each time."""
        function, names = generator.detail
        if len(self.active) >= DEPTH or function.name in self.active:
            return Value("item", (generator,), None, generator.node)
        outer = self.yielded, self.endless
        again = any(isinstance(node, ast.While) and isinstance(node.test, ast.Constant) for node in ast.walk(function))
        self.yielded, self.endless = [], self.endless or again
        first = len(generator.args) - len(names)
        self.enter(function, generator.args[:first], dict(zip(names, generator.args[first:], strict=True)))
        found = self.yielded
        self.yielded, self.endless = outer
        if len(found) == 1:
            return found[0]
        return Value("either", tuple(found), (function, True, True), function) if found else Value("const")

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
        self.flow.returned[id(function)] = returned
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
