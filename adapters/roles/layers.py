"""Which layers of a network to listen to: by the library that it is of, or by what people call them."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from ..analysis.values import dotted
from .findings import LIKELY, Findings

LAYERS = {
    "decoder": (
        ("decoder", "decode_head", "fuse", "aspp", "neck", "up4", "features"),
        "name of the layer whose output is the decoder's features, one tensor",
    ),
    "classifier": (
        ("classifier", "cls_seg", "cls", "seg_head", "out_conv", "final", "head", "pred", "out"),
        "name of the convolution that makes logits of them",
    ),
}
"""The layers that are listened to: words that people call them, and what to fill in for those that are not found."""
LIBRARIES = {
    "segmentation_models_pytorch": (
        r"(?!DPT)[A-Z]\w*|create_model",
        {"decoder": "decoder", "classifier": "segmentation_head.0"},
    ),
    "torchvision.models.segmentation": (r"deeplabv3\w*", {"decoder": "classifier.3", "classifier": "classifier.4"}),
}
"""Layers of networks that a library makes by functions or classes with names like these."""


def find_layers(tree: ast.Module, students: Collection[str], findings: Findings) -> tuple[dict[str, str], list[str]]:
    """The layer of the features and the one that classifies; and what is left to fill in.

    Args:
        tree: The script.
        students: Names of its networks.
        findings: Takes what is found.
    """
    for library, (makers, known) in LIBRARIES.items():
        if any(re.fullmatch(makers, name) for name in _made_by(tree, library)):
            for word, layer in known.items():
                findings.add(f"layer of the {word}", layer, 0, LIKELY, f"as in {library}")
            return known, []
    there = _attributes(tree, students)
    layers = {word: next((one for one in words if one in there), "") for word, (words, _) in LAYERS.items()}
    for word, layer in layers.items():
        if layer:
            findings.add(f"layer of the {word}", layer, 0, LIKELY, "by its name")
    among = f"; the script's classes have {', '.join(there)}" if there else ""
    questions = [f"{word.upper()!r}: {LAYERS[word][1]}{among}" for word, layer in layers.items() if not layer]
    return {word: layer or word.upper() for word, layer in layers.items()}, questions


def _made_by(tree: ast.Module, library: str) -> list[str]:
    """Functions and classes of a library that a script calls, by their own names."""
    full = dict[str, str]()  # what names of the script stand for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {
                one.asname or one.name.split(".")[0]: one.name if one.asname else one.name.split(".")[0]
                for one in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    called = [dotted(node.func).partition(".") for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [full.get(first, first) + dot + rest for first, dot, rest in called]
    return [name.removeprefix(f"{library}.") for name in names if name.startswith(f"{library}.")]


def _attributes(tree: ast.Module, students: Collection[str]) -> list[str]:
    """Layers of the networks whose classes the script holds, in their order."""
    owners = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_network(node)]
    nodes = [node for owner in owners for node in ast.walk(owner)]
    stores = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    own = sorted((node for node in stores if dotted(node.value) == "self"), key=lambda node: node.lineno)
    networks = [node.attr for node in own if node.attr not in students]
    return list(dict.fromkeys(networks))


def _is_network(owner: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "forward" for node in owner.body)
