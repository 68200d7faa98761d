"""``brpg patch``, ``run`` and ``list``: what they write, print and refuse."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brpg_lib.adapters import commands
from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.cli import main

STANDINS = Path(__file__).parent.parent / "standins"


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkout(framework: str, tmp_path: Path) -> Path:
    return copy_of(framework, tmp_path)


@pytest.fixture
def unimatch(tmp_path: Path) -> Path:
    return copy_of("unimatch", tmp_path)


def copy_of(framework: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(STANDINS / framework.replace("-", "_"), folder / framework, ignore=ignored))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """The one line that a refused command prints; nothing in the folder may change."""
    before = files(folder)
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"brpg {arguments[0]}: ")
    assert files(folder) == before
    return printed.err


def test_patch_writes_beside_the_originals(framework: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(checkout)
    assert main(["patch", framework, str(checkout)]) == 0
    after = files(checkout)
    assert {path: text for path, text in after.items() if path in before} == before
    scripts = FRAMEWORKS[framework].scripts
    new = {path.name for path in after if path not in before}
    assert new == {script.replace(".py", "_brpg.py") for script in scripts}
    printed = capsys.readouterr().out
    for name in new:
        compile((checkout / name).read_text(), name, "exec")
        assert f"{checkout / name} written.\n" in printed
        assert f"Start it with\n  cd {checkout}" in printed
        launcher = "torchrun --nproc_per_node=" if FRAMEWORKS[framework].ranks else "&& python "
        assert name in printed.split(launcher, 1)[1]
    assert "+from brpg_lib.adapters.plugin import Plugin" in printed


def test_patch_one_script_to_a_file(unimatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.py"
    assert main(["patch", "unimatch", str(unimatch / "fixmatch.py"), "--output", str(target)]) == 0
    assert "brpg" in target.read_text()
    assert not list(unimatch.glob("*_brpg.py"))
    assert 'PYTHONPATH=."${PYTHONPATH:+:$PYTHONPATH}" torchrun' in capsys.readouterr().out


def test_diff_and_check_write_nothing(framework: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(checkout)
    assert main(["patch", framework, str(checkout), "--diff"]) == 0
    diff = capsys.readouterr().out
    assert main(["patch", framework, str(checkout), "--check"]) == 0
    checked = capsys.readouterr().out
    assert files(checkout) == before
    for script in FRAMEWORKS[framework].scripts:
        assert f"--- {script}\n+++ {script.replace('.py', '_brpg.py')}\n" in diff
        assert f"{checkout / script}: can be patched ({framework}, like {script})\n" in checked


@pytest.mark.parametrize(
    ("name", "place"),
    [("unimatch", "your yaml; lengths count epochs"), ("ssl4mis", "a file, --brpg FILE.yaml; lengths")],
)
def test_settings_that_will_hold_are_told(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the published weight of 1 a training on few labels may get worse: nobody should find out afterwards."""
    for options in (["--check"], []):
        assert main(["patch", name, str(copy_of(name, tmp_path / "".join(options))), *options]) == 0
        told = capsys.readouterr().out.partition("settings of the head: a section brpg in ")[2]
        assert told.startswith(place)
        assert "preset pascal, loss_weight 1, warmup 1, collect 1" in told
        assert "brpg: {preset: small_data}" in told
        assert ("cityscapes...: preset cityscapes, loss_weight 1, warmup 3, collect 3" in told) == (name == "unimatch")


def test_the_diff_can_be_applied(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("patch") is None:
        pytest.skip("needs the patch program")
    script = unimatch / "unimatch.py"
    assert main(["patch", "unimatch", str(script), "--diff"]) == 0
    diff = capsys.readouterr().out
    assert main(["patch", "unimatch", str(script)]) == 0
    subprocess.run(["patch", str(script)], input=diff, text=True, check=True, capture_output=True)
    assert script.read_text() == (unimatch / "unimatch_brpg.py").read_text()


def test_edits_elsewhere_and_fixes_done_already_do_not_matter(framework: str, checkout: Path) -> None:
    for script in FRAMEWORKS[framework].scripts:
        path = checkout / script
        text = path.read_text()
        for old, new in {
            "loader_l_iter.next()": "next(loader_l_iter)",
            '"--local_rank"': '"--local_rank", "--local-rank"',
            ".backward()\n": ".backward()  # mine\n",
            'torch.load(os.path.join(args.save_path, "latest.pth"))': (
                'torch.load(os.path.join(args.save_path, "latest.pth"), weights_only=False)'
            ),
        }.items():
            text = text.replace(old, new)
        assert text.count("# mine") >= 1
        assert ("local-rank" in text) == FRAMEWORKS[framework].ranks
        path.write_text("# my copy\nimport json\n" + text.replace("    main()\n", "    print(json)\n    main()\n"))
    assert main(["patch", framework, str(checkout), "--check"]) == 0


def test_fixes_upstream_bugs_on_demand(framework: str, checkout: Path) -> None:
    script = next(iter(FRAMEWORKS[framework].scripts))
    plain, fixed = checkout / "plain.py", checkout / "fixed.py"
    assert main(["patch", framework, str(checkout / script), "--output", str(plain)]) == 0
    for name in FRAMEWORKS[framework].fixes:
        assert main(["patch", framework, str(checkout / script), "--output", str(fixed), "--fix", name]) == 0
        assert plain.read_text() != fixed.read_text()
        fixed.unlink()


def test_wrong_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or folder" in refused(capsys, tmp_path, "patch", "u2pl", tmp_path / "gone")
    message = refused(capsys, tmp_path, "patch", "unimatch", tmp_path)
    assert "has no unimatch.py or fixmatch.py; expected a checkout of https://github.com/LiheYoung/UniMatch" in message


def test_wrong_framework(framework: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other in FRAMEWORKS.keys() - {framework}:
        hint = refused(capsys, checkout, "patch", other, checkout).partition("; it looks like ")[2]
        assert framework in re.split(r" or |\n", hint), "of several with a script of that name, it is among them"
    assert "unknown framework 'u3pl'; known are u2pl" in refused(capsys, checkout, "patch", "u3pl", checkout)


@pytest.mark.parametrize(("framework", "home"), [(f.name, f.home) for f in FRAMEWORKS.values() if f.home != "."])
def test_a_whole_clone_whose_scripts_lie_deeper(framework: str, home: str, tmp_path: Path) -> None:
    (tmp_path / "clone" / home).parent.mkdir(parents=True)
    copy_of(framework, tmp_path).rename(tmp_path / "clone" / home)
    copy_of("unimatch", tmp_path / "clone")
    (tmp_path / "clone/unimatch/unimatch.py").rename(tmp_path / "clone/unimatch.py")  # of the same name, above it
    assert main(["patch", framework, str(tmp_path / "clone")]) == 0
    written = {path.relative_to(tmp_path / "clone").as_posix() for path in tmp_path.rglob("*_brpg.py")}
    assert written == {f"{home}/{script.replace('.py', '_brpg.py')}" for script in FRAMEWORKS[framework].scripts}


def test_a_script_of_the_same_name_from_another_framework(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = copy_of("unimatch-v2", tmp_path)
    message = refused(capsys, tmp_path, "patch", "unimatch", checkout / "fixmatch.py")
    assert message.endswith(
        "it is no script of unimatch; --as unimatch takes it for one of unimatch all the same;"
        " it looks like unimatch-v2\n"
    )
    message = refused(capsys, tmp_path, "patch", "--as", "unimatch", checkout / "fixmatch.py")
    assert "nothing in the script like `from model.semseg.deeplabv3plus import *`" in message


def test_a_part_that_is_missing(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = unimatch / "fixmatch.py"
    script.write_text(
        script.read_text().replace("conf_u_w_cutmixed = cutmix(box, conf_u_w, conf_mix)", "conf_u_w_cutmixed = 1")
    )
    message = refused(capsys, unimatch, "patch", "unimatch", unimatch)
    assert "fixmatch.py: found no confidence: no name holds the probability of `mask_u_w_cutmixed`" in message
    assert "known to work: https://github.com/LiheYoung/UniMatch at 0324f3d" in message
    assert main(["patch", str(script), "--check"]) == 1
    printed = capsys.readouterr().out
    assert "MISSING: confidence" in printed
    assert "near: " in printed
    assert "by hand: confidence = ..." in printed


def test_images_in_another_order_than_the_loss_takes_them(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = unimatch / "fixmatch.py"
    script.write_text(script.read_text().replace("((img_x, img_u_w))", "((img_u_w, img_x))"))
    assert "found no labels" in refused(capsys, unimatch, "patch", "unimatch", script)


def test_patching_twice(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patch", "unimatch", str(unimatch)]) == 0
    capsys.readouterr()
    assert "unimatch_brpg.py: exists already; remove it" in refused(capsys, unimatch, "patch", "unimatch", unimatch)
    patched = unimatch / "unimatch_brpg.py"
    patched.replace(unimatch / "unimatch.py")
    (unimatch / "fixmatch_brpg.py").unlink()
    message = refused(capsys, unimatch, "patch", "unimatch", unimatch)
    assert "unimatch.py: it imports brpg_lib already; patch the original" in message


def test_a_folder_that_cannot_be_written_to(
    unimatch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, []

    def full_disk(source: Path, target: Path) -> None:
        if done:
            raise OSError(28, "No space left on device", str(target))
        done.append(target)
        replace(source, target)

    if os.geteuid() != 0:
        unimatch.chmod(0o555)
        message = refused(capsys, unimatch, "patch", "unimatch", unimatch)
        unimatch.chmod(0o755)
        assert "cannot be written to (Permission denied); patch to another place with --output" in message
    monkeypatch.setattr(commands.os, "replace", full_disk)
    message = refused(capsys, unimatch, "patch", "unimatch", unimatch)
    assert f"{unimatch}: cannot be written to (No space left on device)" in message


def test_output_into_a_folder_that_is_not_there(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, target = unimatch / "unimatch.py", unimatch / "gone/mine.py"
    message = refused(capsys, unimatch, "patch", "unimatch", script, "--output", target)
    assert "cannot be written to (No such file or directory)" in message
    message = refused(capsys, unimatch, "patch", "unimatch", unimatch, "--output", unimatch / "mine.py")
    assert "--output takes one script" in message


def test_folders_with_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = copy_of("unimatch", tmp_path / "my clones")
    assert main(["patch", "unimatch", str(checkout / "unimatch.py"), "--output", str(tmp_path / "its copy.py")]) == 0
    line = capsys.readouterr().out.splitlines()[-2].strip()
    words = shlex.split(line)
    assert words[1] == str(checkout)
    assert Path(checkout, words[words.index("torchrun") + 2]).resolve() == tmp_path / "its copy.py"


def test_what_is_no_place_for_a_file(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = unimatch / "unimatch.py"
    message = refused(capsys, unimatch, "patch", "unimatch", script, "--output", unimatch)
    assert f"{unimatch}: is a folder; --output takes a file" in message
    message = refused(capsys, unimatch, "patch", "unimatch", script, "--output", script / "x.py")
    assert "cannot be written to" in message


ADAPTERS = {
    "x = (": "SyntaxError",
    "import nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'",
    "1 / 0": "ZeroDivisionError",
    "raise SystemExit(3)": "SystemExit: 3",
}


@pytest.mark.parametrize("code", ADAPTERS)
def test_an_adapter_that_fails(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "mine.py"
    adapter.write_text(code)
    assert f"{adapter}: {ADAPTERS[code]}" in refused(capsys, tmp_path, "patch", adapter, tmp_path)


def test_what_is_no_python(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unimatch / "unimatch.py").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused(capsys, unimatch, "patch", "unimatch", unimatch)
    (unimatch / "unimatch.py").write_text("def main(:\n")
    assert "not valid Python: line 1" in refused(capsys, unimatch, "patch", "unimatch", unimatch)


def test_an_unknown_bug(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, unimatch, "patch", "unimatch", unimatch, "--fix", "typos")
    assert "unknown bug 'typos' of unimatch; --fix knows short-epochs" in message


@pytest.mark.parametrize("command", ["patch", "run", "list"])
def test_missing_libcst(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("brpg_lib.adapters")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "libcst", None)
    assert main([command, "unimatch", "."]) == 2
    assert capsys.readouterr().err == f"brpg {command} needs libcst: pip install 'brpg-lib[adapters]'\n"
    importlib.invalidate_caches()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for framework in FRAMEWORKS.values():
        for text in (framework.name, framework.repository, *framework.scripts, *framework.commits, *framework.fixes):
            assert text in printed


def test_run_refuses_before_it_starts(unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it looks like unimatch" in refused(capsys, unimatch, "run", "u2pl", unimatch, "--", "--config=x")


@pytest.mark.parametrize("processes", ["0", "-1"])
def test_run_needs_a_process(processes: str, unimatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, unimatch, "run", "unimatch", unimatch, "--nproc-per-node", processes)
    assert f"--nproc-per-node: expected at least 1, found {processes}" in message


def test_run_of_a_script_that_knows_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = copy_of("ssl4mis", tmp_path)
    message = refused(capsys, checkout, "run", "ssl4mis", checkout, "--nproc-per-node", "2")
    assert "--nproc-per-node: train_mean_teacher_2D.py knows one process only" in message


ARGUMENTS = ["--config=a b.yaml", "--help", "--fix", "x", "--nproc-per-node", "4", "--", "-x"]


def test_run_patches_in_memory(tmp_path: Path) -> None:
    checkout = copy_of("unimatch", tmp_path)
    before = files(checkout)
    script = checkout / "fixmatch.py"
    text = script.read_text()
    # the anchors stay, but the script only tells how it was started
    text = text.replace('if __name__ == "__main__":\n    main()', "")
    text += (
        "\nimport sys\nprint(__name__, sys.argv[1:], os.getcwd(), os.environ['RANK'], 'Plugin' in globals(), "
        "'model.semseg' in sys.modules, flush=True)\n"
    )
    script.write_text(text)
    before[script] = script.read_bytes()
    command = [sys.executable, "-m", "brpg_lib.cli", "run", "unimatch", str(script), "--nproc-per-node=2", "--"]
    done = subprocess.run([*command, *ARGUMENTS], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = f"__main__ {ARGUMENTS} {checkout}"
    assert sorted(done.stdout.splitlines()) == [f"{expected} {rank} True True" for rank in range(2)]
    assert {path: text for path, text in files(checkout).items() if "__pycache__" not in path.parts} == before
