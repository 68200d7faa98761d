"""``--brpg FILE`` on the command line of a script without yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from brpg_lib.adapters.arguments import take_section


@pytest.mark.parametrize("joined", [True, False])
def test_takes_the_option_and_leaves_the_rest(joined: bool, tmp_path: Path) -> None:
    path = tmp_path / "a=b.yaml"
    path.write_text("brpg: {enabled: false}")
    arguments = ["train.py", "--exp", "x", *([f"--brpg={path}"] if joined else ["--brpg", str(path)]), "--seed", "1"]
    assert take_section(arguments) == {"enabled": False}
    assert arguments == ["train.py", "--exp", "x", "--seed", "1"]


def test_without_the_option_nothing_changes() -> None:
    arguments = ["train.py", "--brpg-not", "x"]
    assert take_section(arguments) is None
    assert arguments == ["train.py", "--brpg-not", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("a: [", "while parsing"),
        ("enabled: true", "expected a section brpg, found enabled"),
        ("3", "expected a section brpg, found 3"),
    ],
)
def test_a_wrong_file_ends_in_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "brpg.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=message) as stopped:
        take_section(["train.py", "--brpg", str(path)])
    assert "\n" not in str(stopped.value)


def test_a_missing_file_name() -> None:
    with pytest.raises(SystemExit, match="--brpg: expected a YAML file"):
        take_section(["train.py", "--brpg"])
