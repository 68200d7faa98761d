"""The settings that a script reads, and the options of its command line."""

from __future__ import annotations

import ast

from ..analysis.values import Value, dotted
from .around import Around
from .findings import line_of


def find_settings(around: Around) -> dict[str, str]:
    """The yaml's values, the command line's, and the logger."""
    found = {}
    tree = [place.statement for place in around.flow.places]
    uses: dict[str, int] = {}
    for statement in tree:
        for node in ast.walk(statement) if not hasattr(statement, "body") else ():
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and isinstance(node.slice.value, str)
            ):
                uses[dotted(node.value)] = uses.get(dotted(node.value), 0) + 1
    loaded = [name for name, value in around.env.items() if _is_settings(value)]
    if loaded:
        name = max(loaded, key=lambda name: uses.get(name, 0))
        found["cfg"] = around.findings.add("settings", name, line_of(around.env[name]))
    for name, value in around.env.items():
        made = str(value.detail) if value.op == "call" else ""
        if made.endswith("parse_args"):
            found["args"] = name
        if made.rpartition(".")[2] in ("init_log", "getLogger", "get_logger", "get_root_logger"):
            found["logger"] = name
    return found


def options(around: Around) -> set[str]:
    """Options of the command line."""
    found = set()
    for place in around.flow.places:
        for node in ast.walk(place.statement) if not hasattr(place.statement, "body") else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                found |= {str(text).lstrip("-").replace("-", "_") for text in texts}
    return found


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
