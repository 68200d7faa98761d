"""Scripts that mean the same as another and look different: names, order, quotes, comments, functions."""

from __future__ import annotations

import ast
import builtins
import io
import keyword
import random
import tokenize
from collections.abc import Callable, Sequence

PURE = {"cutmix", "len", "softmax", "max", "cuda", "flip", "detach", "chunk", "cat", "torch.cat", "split", "clone"}
WORDS = [
    "alpha",
    "batch",
    "crop",
    "data",
    "early",
    "field",
    "group",
    "held",
    "inner",
    "joined",
    "kept",
    "label",
    "maps",
    "net",
    "other",
    "part",
    "quiet",
    "rows",
    "sum",
    "tile",
    "under",
    "view",
]


def mutant(source: str, seed: int) -> str:
    """A script that trains as ``source`` does.

    Args:
        source: A stand-in.
        seed: Chooses what is changed.
    """
    draw = random.Random(seed)
    tree = ast.parse(source)
    docstring = tree.body.pop(0) if ast.get_docstring(tree) else None
    changes: list[Callable[[ast.Module, random.Random], None]] = [renamed, reordered, extracted]
    for change in draw.sample(changes, draw.randint(1, len(changes))):
        change(tree, draw)
    if docstring is not None:
        tree.body.insert(0, docstring)
    text = ast.unparse(ast.fix_missing_locations(tree))
    for style in (requoted, commented, spaced):
        if draw.random() < 0.5:
            text = style(text, draw)
    return text


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _globals(tree: ast.Module) -> set[str]:
    shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            shared |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            shared.add(node.name)
        else:
            shared |= {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return shared


def renamed(tree: ast.Module, draw: random.Random) -> None:
    """Other names for what functions bind."""
    kept = _globals(tree) | set(dir(builtins))
    for function in _functions(tree):
        bound = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        bound |= {arg.arg for arg in ast.walk(function) if isinstance(arg, ast.arg)}
        inner = {node.name for node in ast.walk(function) if isinstance(node, ast.FunctionDef)}
        names = sorted(bound - kept - inner)
        chosen = draw.sample(names, draw.randint(len(names) // 3, len(names)))
        taken, new = bound | kept, {}
        for name in chosen:
            fresh = f"{draw.choice(WORDS)}_{draw.choice(WORDS)}{draw.randint(0, 99)}"
            while fresh in taken or keyword.iskeyword(fresh):
                fresh += "x"
            taken.add(fresh)
            new[name] = fresh
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in new:
                node.id = new[node.id]
            if isinstance(node, ast.arg) and node.arg in new:
                node.arg = new[node.arg]


def _names(node: ast.AST, context: type) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, context)}


def _called(node: ast.AST) -> set[str]:
    return {ast.unparse(inner.func).rpartition(".")[2] for inner in ast.walk(node) if isinstance(inner, ast.Call)}


def _movable(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and _called(node) <= PURE


def _independent(one: ast.stmt, two: ast.stmt) -> bool:
    if not (_movable(one) and _movable(two)):
        return False
    written = _names(one, ast.Store), _names(two, ast.Store)
    read = _names(one, ast.Load), _names(two, ast.Load)
    return not (written[0] & (read[1] | written[1]) or written[1] & read[0])


def reordered(tree: ast.Module, draw: random.Random) -> None:
    """Neighbours that do not need each other, the other way round."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or isinstance(node, ast.Module):
            continue
        for _ in range(3):
            for index in range(len(body) - 1):
                if draw.random() < 0.5 and _independent(body[index], body[index + 1]):
                    body[index], body[index + 1] = body[index + 1], body[index]


def extracted(tree: ast.Module, draw: random.Random) -> None:
    """Some statements of the training loop in a function of their own."""
    tree.body[:] = ast.parse(ast.unparse(tree)).body  # with lines in order
    shared = _globals(tree)
    loops = [
        (function, node)
        for function in _functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.For) and _steps(node)
    ]
    if not loops:
        return
    function, loop = loops[-1]
    block = _block_with_passes(loop)
    runs = [
        (start, end)
        for start in range(len(block))
        for end in range(start + 1, min(start + 6, len(block)) + 1)
        if all(map(_liftable, block[start:end]))
    ]
    if not runs:
        return
    start, end = draw.choice(runs)
    lifted = block[start:end]
    bound = set().union(*(_names(statement, ast.Store) for statement in lifted))
    local = {
        name
        for node in ast.walk(function)
        for name in ([node.id] if isinstance(node, ast.Name) else [])
        if name not in shared and not hasattr(builtins, name)
    }
    read, ready = set[str](), set[str]()
    for statement in lifted:
        read |= (_names(statement, ast.Load) & local) - ready
        ready |= _names(statement, ast.Store)
    inner = {
        name
        for statement in lifted
        for node in ast.walk(statement)
        if isinstance(node, ast.comprehension)
        for name in _names(node.target, ast.Store)
    }
    later = set().union(
        *(
            _names(statement, ast.Load)
            for statement in ast.walk(function)
            if isinstance(statement, ast.stmt) and statement not in lifted
        )
    )
    given, results = sorted((read - inner) & _before(function, lifted[0])), sorted((bound - inner) & later)
    if not results:
        return
    name = f"{draw.choice(WORDS)}_of_step"
    values = ", ".join(results)
    helper = ast.parse(f"def {name}({', '.join(given)}):\n    return {values}").body[0]
    assert isinstance(helper, ast.FunctionDef)
    helper.body = [*lifted, *helper.body]
    block[start:end] = ast.parse(f"{values} = {name}({', '.join(given)})").body
    tree.body.insert(tree.body.index(function), helper)


def _before(function: ast.FunctionDef, first: ast.stmt) -> set[str]:
    """Names bound above a statement."""
    names = {arg.arg for arg in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.lineno < first.lineno:
            names.add(node.id)
    return names


def _steps(node: ast.For) -> bool:
    own = [statement for statement in node.body if isinstance(statement, ast.Expr)]
    return any(ast.unparse(statement).endswith(".step()") for statement in own)


def _block_with_passes(loop: ast.For) -> list[ast.stmt]:
    """The longest block of a loop's body."""
    blocks = [loop.body] + [
        block for node in loop.body if isinstance(node, ast.If) for block in (node.body, node.orelse)
    ]
    return max(blocks, key=len)


def _liftable(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign | ast.With) and "lr" not in _names(statement, ast.Store)


def _retold(source: str, tell: Callable[[tokenize.TokenInfo], str]) -> str:
    tokens = [
        (token.type, tell(token), token.start, token.end, token.line)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    ]
    return tokenize.untokenize(tokens)


def requoted(source: str, draw: random.Random) -> str:
    """Other quotes."""

    def tell(token: tokenize.TokenInfo) -> str:
        text = token.string
        if (
            token.type == tokenize.STRING
            and text[0] == "'"
            and '"' not in text
            and "\\" not in text
            and draw.random() < 0.7
        ):
            return f'"{text[1:-1]}"'
        return text

    return _retold(source, tell)


def commented(source: str, draw: random.Random) -> str:
    """Comments and blank lines, above statements."""
    lines = source.splitlines()
    starts = {node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)}
    found = []
    for number, line in enumerate(lines, 1):
        if number in starts and draw.random() < 0.2 and not line.strip().startswith(("else", "elif")):
            found += ["", line[: len(line) - len(line.lstrip())] + "# über die nächste Zeile"]
        found.append(line)
    return "\n".join(found) + "\n"


def spaced(source: str, draw: random.Random) -> str:
    """Blanks within parentheses, a comment at line ends."""
    lines = source.splitlines()
    inside = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
        if isinstance(node.value, str)
    }
    found: Sequence[str] = [
        line.replace("(", "( ").replace("( )", "()") + "   # kept"
        if number not in inside and draw.random() < 0.3 and line.strip()
        else line
        for number, line in enumerate(lines, 1)
    ]
    return "\n".join(found) + "\n"
