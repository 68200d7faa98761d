"""What the commands say, as people see it: the tour, examples, defaults, mistakes, narrow terminals and pipes."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packages import needs_transformers
from pages import ROOT

from brpg_lib import cli, completion
from brpg_lib.cli import COMMANDS, main

OURS = [name for name in COMMANDS if "adapters" not in COMMANDS[name].place]
RUN_BRPG = "import sys; from brpg_lib.cli import main; sys.exit(main(sys.argv[1:]))"


def parser_of(name: str) -> argparse.ArgumentParser:
    found = completion.parser_of(name)
    assert isinstance(found, argparse.ArgumentParser)
    return found


def test_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "brpg demo" in out
    assert "brpg --help" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_in_examples_that_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert f"usage: brpg {name}" in out
    for command, what in COMMANDS[name].examples:
        assert command in out
        assert what in out
        program, called, *arguments = shlex.split(command.partition(" > ")[0])
        assert program == "brpg"
        arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
        parser_of(called).parse_args(arguments)  # exits if it is wrong


@pytest.mark.parametrize("name", OURS)
def test_options_tell_their_defaults(name: str) -> None:
    for action in parser_of(name)._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            assert "default" in (action.help or ""), action.option_strings


def test_a_mistake_in_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "did you mean brpg train?" in err
    assert err.count("\n") == 1


def test_a_mistake_in_an_option_tells_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--hepl"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("brpg train --help has all options, and examples\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of commands that say nothing of their own to it."""

    def stopped(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "function_of", lambda _: stopped)
    assert main([name]) == 130
    captured = capsys.readouterr()
    assert captured.err.strip() == f"brpg {name}: interrupted"
    assert captured.out == ""


@pytest.mark.parametrize("command", ["", "--help", pytest.param("train --help", marks=needs_transformers), "list"])
def test_whoever_reads_may_stop(command: str) -> None:
    """`brpg ... | head -1`: no traceback, here or at the end of the process."""
    arguments = [sys.executable, "-u", "-c", RUN_BRPG, *command.split()]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() in (0, 1)  # argparse leaves it unsaid
    assert said == ""


def test_the_list_of_presets_cuts_no_name() -> None:
    """In a pipe lines are as long as need be, whatever the terminal is."""
    environment = os.environ | {"COLUMNS": "40"}
    command = [sys.executable, "-c", RUN_BRPG, "train", "--list"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    presets = importlib.import_module("brpg_lib.examples.training.recipe_files").presets()
    first_words = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(presets) <= first_words
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
@needs_transformers
def test_a_terminal_of_80_columns_without_colors() -> None:
    import pty

    shown = bytearray()

    def read(file: int) -> bytes:
        data = os.read(file, 1024)
        shown.extend(data)
        return b"" if not data else b"."

    environment = {"COLUMNS": "80", "TERM": "xterm-256color", "NO_COLOR": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    stdout = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(quiet, 1)
        pty.spawn([sys.executable, "-c", RUN_BRPG, "train", "--list"], read)
    finally:
        os.dup2(stdout, 1)
        for file in (stdout, quiet):
            os.close(file)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    text = shown.decode()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for name in importlib.import_module("brpg_lib.examples.training.recipe_files").presets():
        assert re.search(rf"^\s*{name}\s", plain, re.MULTILINE)
    assert max(map(len, plain.splitlines())) <= 80
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text), "a color in spite of NO_COLOR"


@pytest.mark.parametrize("shell", completion.WHERE)
def test_completion_for_every_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "check-data" in out
    assert "framework" in out


def test_completion_without_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'brpg-lib[completion]'" in capsys.readouterr().err


def test_completion_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = tmp_path / "brpg"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(brpg demo --framework uni); COMP_CWORD=3; "
        "$(complete -p brpg | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.stdout.split() == ["unimatch"], done.stderr


def test_make_help_lists_all_targets() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    makefile = (ROOT / "Makefile").read_text()
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == set(declared.split())


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command.summary in " ".join(out.split()) for command in COMMANDS.values())
    assert all(name in COMMANDS for _, chosen in cli.TOUR for name, _ in chosen)
