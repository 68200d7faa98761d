"""What the values of the label images are, and which settings they need."""

from __future__ import annotations

from collections.abc import Sequence

from brpg_lib.examples.training.data.checks.findings import Findings, Given, Problem, few, numbered
from brpg_lib.examples.training.data.encoding import UNKNOWN, Encoding, mask_values, palette
from brpg_lib.examples.training.data.judgement import fault_in_values, suggestion_for_colors, suggestion_for_values
from brpg_lib.examples.training.data.layouts import LAYOUTS


def judge_values(found: Findings, given: Given) -> None:
    """What the values of the label images are, and which settings they need."""
    values, count = found.values, len(found.class_names) or None
    if found.layout == "folder" and (found.encoding is None or values.colored):
        if values.colored:
            found.suggestion = suggestion_for_colors(values.colors)
            also = "" if len(values.colored) == values.masks else ", the others values"
            text = f"{len(values.colored)} of {values.masks} masks hold colors{also}"
            if found.suggestion is not None:
                text += f": {found.suggestion.text}"
            if found.suggestion is None:
                text += f", {len(values.colors)} of them or more: too many for classes; save masks as PNG, not resized"
            found.problems.append(Problem("values", text))
        else:
            found.suggestion = suggestion_for_values(values.pixels, count)
            fits = count is not None and len(values.shown(count)) >= 2 and not values.class_pixels[UNKNOWN]
            if found.suggestion is None and not fits:  # another number of classes than was said
                found.suggestion = suggestion_for_values(values.pixels)
            if found.suggestion is None and count is None:
                text = (
                    f"the values {_some(sorted(values.pixels))} do not look like classes; --mask-values can name them"
                )
                found.problems.append(Problem("values", text))
            elif found.suggestion is not None and found.suggestion.mask_values is not None:
                found.problems.append(Problem("values", f"{found.suggestion.why}: {found.suggestion.text}"))
        _take(found)
    told = any(problem.kind == "values" for problem in found.problems)
    if found.class_names and found.suggestion is None and not told:
        fault = fault_in_values(values, len(found.class_names), found.encoding, _hint(found))
        if fault is not None:
            found.problems.append(Problem("values", fault))
    if found.suggestion is not None and found.suggestion.shades:
        found.notices.append(
            "many values lie between the main ones, as JPEG or resizing leaves them: these pixels become ignored"
        )


def _take(found: Findings) -> None:
    """Goes on as if what is suggested had been given."""
    suggestion = found.suggestion
    if suggestion is None:
        return
    if suggestion.palette is not None:
        found.encoding = Encoding.of_palette(palette(suggestion.palette))
    elif suggestion.mask_values is not None:
        found.encoding = Encoding.of_values(mask_values(suggestion.mask_values))
    if len(found.class_names) != suggestion.num_classes:
        if found.class_names:
            said, shown = len(found.class_names), suggestion.num_classes
            text = f"{said} classes were said (--num-classes, classes.txt), and the masks look like {shown}"
            found.problems.append(Problem("classes", text))
        found.class_names = numbered(suggestion.num_classes)


def _hint(found: Findings) -> str:
    if found.layout in LAYOUTS:
        return LAYOUTS[found.layout].hint or "they must hold class indices"
    return "they must hold class indices"


def _some(values: Sequence[int]) -> str:
    return few([str(value) for value in values], 6)
