"""Edits that people make to training scripts, as changes of the stand-ins' text."""

from __future__ import annotations

import re
from collections.abc import Callable

CLEAR, BACKWARD, STEP = "optimizer.zero_grad()\n", "loss.backward()\n", "optimizer.step()\n"
DESCENT = re.compile(r"( +)optimizer\.zero_grad\(\)\n +loss\.backward\(\)\n +optimizer\.step\(\)\n")


def descent(*lines: str) -> Callable[[str], str]:
    """Other lines for clearing, backward and step."""

    def change(source: str) -> str:
        found = DESCENT.search(source)
        assert found is not None
        indented = "".join(f"{found[1]}{line}\n" for line in lines)
        return source[: found.start()] + indented + source[found.end() :]

    return change


def text(old: str, new: str, count: int = -1) -> Callable[[str], str]:
    """Other text; the old one must be there."""

    def change(source: str) -> str:
        assert old in source, old
        return source.replace(old, new, count)

    return change


def pattern(old: str, new: str) -> Callable[[str], str]:
    """Other text for a regular expression, which must fit."""

    def change(source: str) -> str:
        changed, count = re.subn(old, new, source)
        assert count, old
        return changed

    return change


def in_turn(*changes: Callable[[str], str]) -> Callable[[str], str]:
    def change(source: str) -> str:
        for one in changes:
            source = one(source)
        return source

    return change


SCALER = text(
    "    for epoch in range(", '    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)\n    for epoch in range(', 1
)
GLOBAL_SCALER = text("\n\ndef main", '\nscaler = torch.amp.GradScaler("cpu", init_scale=4.0)\n\n\ndef main', 1)
ACCELERATOR = """
class Accelerator:
    def backward(self, loss):
        loss.backward()


accelerator = Accelerator()


def main"""
HELPER = """def keep(state, path):
    torch.save(state, path)


def main"""
WANDB = """class wandb:
    @staticmethod
    def log(numbers, step=None, commit=True):
        assert numbers is not None


def main"""
EXACT: dict[str, Callable[[str], str]] = {
    "set_to_none": text("zero_grad()", "zero_grad(set_to_none=True)"),
    "cleared at the end": descent("loss.backward()", "optimizer.step()", "optimizer.zero_grad()"),
    "cleared with a condition": descent(
        "if optimizer is not None:", "    optimizer.zero_grad()", "loss.backward()", "optimizer.step()"
    ),
    "something between": descent(
        "optimizer.zero_grad()", "print(end='')", "loss.backward()", "print(end='')", "optimizer.step()"
    ),
    "GradScaler": in_turn(
        GLOBAL_SCALER,
        descent("optimizer.zero_grad()", "scaler.scale(loss).backward()", "scaler.step(optimizer)", "scaler.update()"),
    ),
    "GradScaler, named": in_turn(
        GLOBAL_SCALER,
        descent(
            "optimizer.zero_grad()",
            "scaled = scaler.scale(loss)",
            "scaled.backward()",
            "scaler.step(optimizer)",
            "scaler.update()",
        ),
    ),
    "GradScaler or not": in_turn(
        GLOBAL_SCALER,
        descent(
            "optimizer.zero_grad()",
            "if len(image_list) > 3:",
            "    scaler.scale(loss).backward()",
            "    scaler.step(optimizer)",
            "else:",
            "    loss.backward()",
            "    optimizer.step()",
        ),
        text("\n\ndef main", "\nimage_list = []\n\n\ndef main", 1),
    ),
    "clipped": in_turn(
        GLOBAL_SCALER,
        descent(
            "optimizer.zero_grad()",
            "scaler.scale(loss).backward()",
            "scaler.unscale_(optimizer)",
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)",
            "scaler.step(optimizer)",
            "scaler.update()",
        ),
    ),
    "accelerator": in_turn(
        text("def main", ACCELERATOR.lstrip(), 1),
        descent("optimizer.zero_grad()", "accelerator.backward(loss)", "optimizer.step()"),
    ),
    "another name for the loss": pattern(r"\bloss\b(?!\")", "total"),
    "an expression goes backward": descent("optimizer.zero_grad()", "(loss + 0 * loss).backward()", "optimizer.step()"),
    "several statements a line": descent("optimizer.zero_grad(); loss.backward(); optimizer.step()"),
    "divided by one": descent("loss = loss / 1", "optimizer.zero_grad()", "loss.backward()", "optimizer.step()"),
    "not parallel": in_turn(
        pattern(r"parallel\((model|ModelBuilder\(cfg\[.net.\]\))(, find_unused_parameters=(True|False))?\)", r"\1"),
        lambda source: source.replace("model.module.", "model."),
    ),
    "other checkpoints": in_turn(
        pattern(r"(latest|ckpt)\.pth", "last.tar"), pattern(r"(?<!_)best\.pth|ckpt_best\.pth", "model_best.tar")
    ),
    "no best checkpoint": pattern(r"(?m)^( +)torch\.save\(.*best\.pth\"\)\)$", r"\1pass"),
    "saved by a function": in_turn(
        text("def main", HELPER, 1), lambda source: source.replace("        torch.save(", "        keep(")
    ),
    "wandb": in_turn(
        text("def main", WANDB, 1),
        pattern(
            r"(?m)^( +)(?:writer|tb_logger)\.add_scalar\((\"(?:train/mask_ratio|Con Loss)\"), (.*), (\w+)\)$",
            r"\1wandb.log({\2: \3}, step=\4)",
        ),
        pattern(r"(?m)^( +)(?:writer|tb_logger)\.add_scalar\((f?\".*\"), (.*), (\w+)\)$", r"\1wandb.log({\2: \3})"),
    ),
    "under autocast": pattern(
        r"(?m)^(            )(loss = (?:loss \+ )?.*)$", r'\1with torch.autocast("cpu", enabled=False):\n\1    \2'
    ),
    "on a device": in_turn(
        text("\n\ndef main", '\nDEVICE = torch.device("cpu")\n\n\ndef main', 1),
        pattern(r"(?m)^( +model = )(\w+\(cfg\))$", r"\1\2.to(DEVICE)"),
    ),
    "nothing logged": pattern(r"(?m)^( +)(?:writer|tb_logger)\.add_scalar\(.*\)$", r"\1pass"),
}
"""Variants that train as the original does: the head must receive the same, step by step."""

AT_FIRST: dict[str, Callable[[str], str]] = {
    "a share of the loss": descent("optimizer.zero_grad()", "(loss / 2).backward()", "optimizer.step()"),
    "accumulated": descent(
        "loss = loss / 2",
        "loss.backward()",
        "if loss is not None:",
        "    optimizer.step()",
        "    optimizer.zero_grad()",
    ),
    "accumulated in place": descent("loss /= 2", "loss.backward()", "optimizer.step()", "optimizer.zero_grad()"),
    "scaled and accumulated": in_turn(
        GLOBAL_SCALER,
        descent(
            "scaler.scale(loss / 2).backward()",
            "scaler.step(optimizer)",
            "scaler.update()",
            "optimizer.zero_grad(set_to_none=True)",
        ),
    ),
}
"""Variants that train otherwise: the head must receive the same in the first step."""
