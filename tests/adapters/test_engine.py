"""Edits of small sources: where they land, what they keep, and when they refuse."""

from __future__ import annotations

import ast

import pytest

from brpg_lib.adapters.editing.edit import AddArgument, After, Before, Edit, PatchError, Replace, Require
from brpg_lib.adapters.editing.engine import patch
from brpg_lib.adapters.editing.patterns import matches

SOURCE = '''"""A script."""
import os  # paths
from helpers import (
    first,
    second,
)

parser.add_argument('--rank', type=int)


def main():
    total = 0   # keep   these  blanks

    for step in range(3):
        loss = compute( step,
                        scale=2 )

        # descend
        optimizer.zero_grad()
        loss.backward()
    with torch.no_grad():
        evaluate(total)
    train(
        model,
        loader,
    )


def train(
    model,
    loader,
):
    return model


if __name__ == "__main__":
    main()
'''


def lines(code: str) -> list[str]:
    return code.splitlines()


def expect(edit: Edit, *changes: tuple[str, str], source: str = SOURCE) -> None:
    """The patched source is the source with these replacements, and nothing else."""
    expected = source
    for old, new in changes:
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert lines(patch(source, [edit])) == lines(expected)


def test_after_keeps_everything_else() -> None:
    edit = After(anchor="total = ...", within="main", code="\nplugin = first()\nif plugin:\n    plugin.start()\n")
    added = "\n\n    plugin = first()\n    if plugin:\n        plugin.start()\n"
    expect(edit, ("    total = 0   # keep   these  blanks\n", f"    total = 0   # keep   these  blanks{added}"))


def test_after_an_import_of_any_form() -> None:
    expect(
        After(anchor="from helpers import *", code="import plugin"),
        ("    second,\n)\n", "    second,\n)\nimport plugin\n"),
    )


def test_before_goes_between_the_blank_line_and_the_comment_above_the_anchor() -> None:
    anchor = "        # descend\n        optimizer.zero_grad()\n"
    code = "\nif step:\n    loss = loss + 1\n"
    edit = Before(anchor="optimizer.zero_grad()", within="main", code=code)
    expect(edit, ("\n" + anchor, "\n        if step:\n            loss = loss + 1\n\n" + anchor))
    edit = Before(anchor="optimizer.zero_grad()", within="main", code="loss = loss + 1")
    expect(edit, (anchor, "        loss = loss + 1\n" + anchor))


def test_replace_an_expression_or_a_statement() -> None:
    edit = Replace(anchor="torch.no_grad()", within="main", code="first()")
    expect(edit, ("with torch.no_grad():", "with first():"))
    edit = Replace(anchor="loss = compute(step, scale=2)", code="loss = first(step)\nloss = 2 * loss", within="main")
    old = "        loss = compute( step,\n                        scale=2 )\n"
    expect(edit, (old, "        loss = first(step)\n        loss = 2 * loss\n"))


def test_arguments_and_parameters() -> None:
    expect(
        AddArgument(anchor="parser.add_argument('--rank', ...)", code="'--Rank'", position=1),
        ("'--rank', type", "'--rank', '--Rank', type"),
    )
    edit = AddArgument(anchor="train(...)", within="main", code="total")
    expect(edit, ("        loader,\n    )", "        loader,\n        total,\n    )"))
    expect(AddArgument(anchor="def train(): ...", code="extra"), ("    loader,\n):", "    loader,\n    extra,\n):"))
    expect(AddArgument(anchor="range(3)", code="4", within="main"), ("range(3)", "range(3, 4)"))
    expect(
        AddArgument(anchor="os.load(x, ...)", code="safe=True"),
        ("y", "y, safe=True"),
        source="import os\nx = 1\nos.load(x, y)\n",
    )
    present = "import os\nos.load(1, safe=False)\n"
    assert patch(present, [AddArgument(anchor="os.load(1, ...)", code="safe=True")]) == present


def test_compound_statements() -> None:
    edit = After(anchor="for step in range(3): ...", within="main", code="first(total)")
    expect(edit, ("        loss.backward()\n", "        loss.backward()\n    first(total)\n"))


def test_anchors_mean_what_they_say_however_they_are_written() -> None:
    for text in ('call( "a",b )', "call('a', (b))", "call(\n    'a',  # why\n    b,\n)"):
        source = f"b = 1\nx = {text}\n"
        assert patch(source, [After(anchor="x = call('a', b)", code="y = 2")]) == source + "y = 2\n"


def test_line_ends_and_a_missing_last_one_are_kept() -> None:
    assert patch("a = 1\r\nb = 2", [After(anchor="a = ...", code="c = 3")]) == "a = 1\r\nc = 3\r\nb = 2"


def test_tabs_are_kept() -> None:
    source = "def f():\n\ta = 1\n\treturn a\n"
    edit = After(anchor="a = 1", within="f", code="if a:\n    a = 2")
    assert patch(source, [edit]) == "def f():\n\ta = 1\n\tif a:\n\t\ta = 2\n\treturn a\n"


MISSING = "nothing in main() like `optimizer.step()`"
TWICE = "2 places in the script like `a = ...`"


@pytest.mark.parametrize(
    ("source", "edit", "message"),
    [
        (SOURCE, Before(anchor="optimizer.step()", within="main", code="pass"), MISSING),
        (SOURCE, Before(anchor="optimizer.zero_grad()", within="train", code="pass"), "nothing in train()"),
        (SOURCE, Before(anchor="optimizer.zero_grad()", within="gone", code="pass"), "nothing in gone()"),
        (SOURCE, Require(anchor="import torch"), "nothing in the script like `import torch`"),
        ("a = 1\nif a:\n    a = 2\n", After(anchor="a = ...", code="pass"), TWICE),
        (
            SOURCE,
            After(anchor="total = ...", within="main", code="use(nowhere, step)"),
            "no definition of nowhere, step, use in main() before",
        ),
        ("a = (1\n", Require(anchor="a = ..."), "not valid Python: line"),
    ],
)
def test_refuses(source: str, edit: Edit, message: str) -> None:
    with pytest.raises(PatchError) as error:
        patch(source, [edit])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_two_edits_at_one_place_are_refused() -> None:
    edits = [Before(anchor="a = 1", code="b = 2"), After(anchor="a = ...", code="c = 3")]
    with pytest.raises(PatchError, match=r"two edits at `a = \.\.\.`; make them one"):
        patch("a = 1\n", edits)
    assert patch("a = 1\n", [Require(anchor="a = 1"), *edits[1:]]) == "a = 1\nc = 3\n"


def test_names_must_be_defined_before_they_are_used() -> None:
    source = "def f(x):\n    a = 1\n    for i in x:\n        pass\n"
    for code in ("lost = lost + 1", "if x:\n    new = new + x", "use = i"):
        with pytest.raises(PatchError, match=r"no definition of (lost|new|i) in f\(\)"):
            patch(source, [After(anchor="a = 1", within="f", code=code)])
    fine = "new = x\nnew = new + a\nmany = [j for j in x]\nkey = lambda k: k + new"
    patch(source, [After(anchor="a = 1", code=fine)])
    edits = [Before(anchor="a = 1", within="f", code="lost = 0"), After(anchor="for i in x: ...", code="x = lost")]
    patch(source, edits)


def test_what_must_follow() -> None:
    source = "clear = step = print\nclear()\nstep()\nclear()\n"
    edit = Before(anchor="clear()", followed_by="step()", code="a = 1")
    assert patch(source, [edit]) == source.replace("clear()\nstep", "a = 1\nclear()\nstep")
    with pytest.raises(PatchError, match=r"nothing in the script like `clear\(\)` followed by `print\(\)`"):
        patch(source, [Before(anchor="clear()", followed_by="print()", code="a = 1")])


def test_arguments_after_named_ones_are_named() -> None:
    source = "train = brpg = print\ntrain(1, size=2)\n"
    patched = patch(source, [AddArgument(anchor="train(...)", code="brpg")])
    assert patched == source.replace("size=2", "size=2, brpg=brpg")
    assert patch("train = brpg = print\ntrain()\n", [AddArgument(anchor="train()", code="brpg")]).endswith(
        "train(brpg)\n"
    )
    with pytest.raises(PatchError, match=r"train\(\) has parameters with defaults"):
        patch("def train(a=1):\n    pass\n", [AddArgument(anchor="def train(): ...", code="brpg")])


def test_all_problems_are_named() -> None:
    edits = [Require(anchor="gone = 1"), Require(anchor="lost = 2"), Require(anchor="total = 0", within="main")]
    with pytest.raises(PatchError, match=r"`gone = 1`; nothing in the script like `lost = 2`$"):
        patch(SOURCE, edits)


def test_fixes_are_optional_and_done_everywhere() -> None:
    source = "a, b = iter(x), iter(x)\nc = a.next()\nd = [a.next()]\n"
    edit = Replace(anchor="a.next()", code="next(a)", optional=True)
    assert patch(source, [edit]) == "a, b = iter(x), iter(x)\nc = next(a)\nd = [next(a)]\n"
    assert patch("a = 1\n", [edit]) == "a = 1\n"


def test_names_may_come_from_anywhere_in_scope() -> None:
    source = (
        "import os.path as path\n\ndef f(x, *args, **options):\n    global shared\n    for y in x:\n        a = 1\n"
    )
    code = "use = [path, x, args, options, shared, y, print, f]"
    assert code in patch(source, [After(anchor="a = 1", within="f", code=code)])
    with pytest.raises(PatchError, match="no definition of x in the script"):
        patch(source, [After(anchor="import os.path as path", code="x")])


@pytest.mark.parametrize(
    ("pattern", "code", "same"),
    [
        ("f(...)", "f()", True),
        ("f(...)", "f(1, 2, *a, b=3)", True),
        ("f(1, ...)", "f(1)", True),
        ("f(1, ...)", "f(1, key=2)", True),
        ("f(1, ...)", "f(2, 1)", False),
        ("f(1)", "f(1, 2)", False),
        ("f(1)", "f(1, key=2)", False),
        ("f(1)", "f(True)", False),
        ("f(1)", "f(1.0)", False),
        ("f(...)", "g.f()", False),
        ("x = ...", "x = y = 1", False),
        ("x = ...", "x: int = 1", False),
        ("x, y = ...", "x, y = z", True),
        ("from a.b import *", "from a.b import c as d, e", True),
        ("from a.b import *", "from a import b", False),
        ("with f(): ...", "with f():\n    a()\n    b()", True),
        ("with f(): ...", "with f() as g:\n    a()", False),
        ("if a: ...", "if a:\n    b()\nelse:\n    c()", True),
        ("def f(): ...", "def f(x, y=1):\n    return x", True),
        ("def f(): ...", "def g():\n    pass", False),
    ],
)
def test_patterns(pattern: str, code: str, same: bool) -> None:
    (expected,), (found,) = ast.parse(pattern).body, ast.parse(code).body
    assert matches(expected, found) is same
