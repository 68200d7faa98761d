"""A family of training scripts: what an adapter declares for scripts that are known by what they do."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..analysis.views import names_of
from ..editing.edit import Edit, PatchError
from ..editing.tidy import MARK, tidy
from ..roles.around import Insertion
from ..roles.findings import Findings, Lacking, Missing, line_of
from ..roles.sight import text
from .edits import edits_of, of_object
from .found import Found, examine
from .framework import Framework
from .lines import NONE, Lines, filled, general_step, plugin_slots, quoted, signature, step_slots, with_sum
from .plan import Plan
from .teacher import teacher_edits

Extras = Callable[[Found], Iterator[Edit]]


def _nothing(found: Found) -> Iterator[Edit]:
    return iter(())


def _no_slots(found: Found) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family(Framework):
    """A framework whose scripts are recognized by their roles, whatever names they use.

    Attributes:
        lines: The lines of each of its scripts.
        network: Module that the student's class is imported from.
        layers: Names of the layers with the decoder's features and with the logits.
        imports: Lines after the script's imports.
        plugin: Makes the plug-in.
        ending: End of the lines for passes of another kind.
        record: Makes the line that writes a validation's scores.
        quote: Quotes of strings in the lines.
        teacher: Whether the teacher's projection is an average of the student's.
        outputs: Slots of a network that gives its representations out; ``None`` for one whose layers are listened to.
        slots: Further slots of the lines.
        extras: Further edits.
        marker: Module that scripts of this family alone import: a hint which family one is of.
    """

    lines: Mapping[str, Lines]
    network: str
    layers: Sequence[str]
    imports: str
    plugin: str
    ending: str
    record: Callable[[Found], str]
    quote: str = "'"
    teacher: bool = False
    outputs: Callable[[Found], dict[str, str]] | None = None
    slots: Callable[[Found], dict[str, str]] = _no_slots
    extras: Extras = _nothing
    marker: str = ""

    @property
    def any_name(self) -> bool:
        """See :class:`Framework`."""
        return True

    def knows(self, script: str, source: str) -> bool:
        """Whether a script imports the family's network, and what this family alone has."""
        try:
            tree = ast.parse(source.removeprefix(MARK))
        except (SyntaxError, ValueError):
            return False
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        return {self.network, *filter(None, [self.marker])} <= modules

    def plan(self, script: str, source: str, fixes: Sequence[str] = (), folder: Path | None = None) -> Plan:
        """See :meth:`Framework.plan`; ``script`` may have any name."""
        self.refuse_patched(script, source)
        source = _python(script, source)
        plan = Plan(self.name, "", source, Findings())
        try:
            found = examine(source, plan.findings, taps=self.outputs is None)
            self._recognize(found, folder)
            plan.ranks = found.around.is_parallel
            plan.kind, step = self._step(found)
            plan.edits = self._edits(found, step)
            plan.edits += [edit for name in fixes for edit in self.fixes[name].edits_for(script, found)]
        except Lacking as lacking:
            plan.findings.missing.insert(0, lacking.missing)
        return plan

    def _recognize(self, found: Found, folder: Path | None) -> None:
        """Whether the network is the family's, whose layers the lines name.

        Raises:
            Lacking: It is another one.
        """
        env = found.flow.places[-1].env
        imported = [str(value.detail) for value in env.values() if value.op == "import"]
        if not any(name.startswith(f"{self.network}.") for name in imported):
            near = [
                (line_of(value), text(value))
                for value in env.values()
                if value.op == "import" and "model" in str(value.detail)
            ]
            reason = f"nothing in the script like `from {self.network} import *`, whose layers {self.name} listens to"
            raise Lacking(Missing("network", reason, list(dict.fromkeys(near))))
        file = folder.joinpath(*self.network.split(".")).with_suffix(".py") if folder is not None else None
        if file is None or not file.is_file() or not self.layers:
            return
        attributes = set(re.findall(r"self\.(\w+)\s*=", file.read_text(encoding="utf-8", errors="replace")))
        lost = [layer for layer in self.layers if layer.split(".")[0] not in attributes]
        if lost:
            reason = f"{file.name} has no layer `{lost[0]}`, only {', '.join(sorted(attributes)) or 'none'}"
            raise Lacking(Missing("layers", reason, by_hand="brpg.tap(model, features=LAYER, logits=LAYER)"))

    def _step(self, found: Found) -> tuple[str, str]:
        """Which script it is like, and its step's lines."""
        weak = found.step.weak
        passes = signature(found.step)
        kinds = [name for name, lines in self.lines.items() if tuple(lines.passes) == passes]
        if self.outputs is not None:
            slots = step_slots(found) | self.outputs(found)
            return next(iter(self.lines)), self._filled(next(iter(self.lines.values())).step, slots)
        if weak is None:
            reason = (
                "no pass under a torch.no_grad() of its own, in the function with the step, gives the pseudo labels"
            )
            raise Lacking(
                Missing("weak view", reason, by_hand="with brpg.teacher_pass(): ...  # in the place of torch.no_grad()")
            )
        if kinds and weak is not None and (weak.source == "listened") == self.teacher:
            slots = step_slots(found) | self.slots(found)
            images = names_of(found.step.labeled.images[0], found.step.descent.place.env)  # type: ignore[union-attr]
            slots["images_l"] = images[0] if images else "x"
            return kinds[0], self._filled(self.lines[kinds[0]].step, slots)
        return "", self._filled(general_step(found, self.ending), step_slots(found))

    def _filled(self, template: str, slots: Mapping[str, str]) -> str:
        return filled(
            template,
            {
                name: quoted(code, self.quote) if code and code != NONE and not code.startswith(",") else code
                for name, code in slots.items()
            },
        )

    def _edits(self, found: Found, step: str) -> list[Edit]:
        extras = [*self.extras(found), *(teacher_edits(found) if self.outputs is None else ())]
        self._record(found)
        found.surroundings.insertions = [self._quoted(insertion) for insertion in found.surroundings.insertions]
        step = with_sum(found, step, self.quote)
        return of_object(found, [*edits_of(found, self.imports, self._plugin(found), step, self.quote), *extras])

    def _quoted(self, insertion: Insertion) -> Insertion:
        code = insertion.code if "\n" in insertion.code else quoted(insertion.code, self.quote)
        return Insertion(insertion.statement, code, insertion.before)

    def _record(self, found: Found) -> None:
        where = found.around.scored
        if where is None:
            return
        if "cfg" not in found.surroundings.names:
            found.findings.lack(
                "scores",
                "no settings of a yaml to tell trainings apart by",
                by_hand="brpg.record(FOLDER, epoch, MIOU, settings={})",
            )
            return
        found.surroundings.insertions.insert(0, Insertion(where.statement, self.record(found), where.before))

    def _plugin(self, found: Found) -> str:
        names = found.surroundings.names
        if "cfg" not in names:
            raise Lacking(
                Missing(
                    "settings",
                    "no name holds what yaml.load() gave, whose keys the plug-in reads",
                    by_hand="cfg = yaml.safe_load(...)",
                )
            )
        slots = plugin_slots(found) | {
            "cfg": names["cfg"],
            "group": "0" if found.around.groups() == 1 else "1",
            "logger": f", logger={names['logger']}" if "logger" in names else "",
            "logger_line": f",\n    logger={names['logger']}" if "logger" in names else "",
        }
        return self._filled(self.plugin, slots)


def _python(script: str, source: str) -> str:
    try:
        return tidy(source.removeprefix(MARK))
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
        raise PatchError(f"{script}: not valid Python: {line}") from None
