"""Two runs on one output: the second is refused, and a lock ends with its process."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.app import run
from minitron.errors import MinitronError
from minitron.files import sole
from minitron.locks import locked

# Holds the outputs named until stdin ends.
HOLD = """
import sys
from pathlib import Path
from minitron.files import sole
with sole(*map(Path, sys.argv[1:])):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def holder(*paths: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_every_command_that_writes_is_refused_while_another_process_writes(
    tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = str(tmp_path / "out"), str(tiny_llama)
    commands = [
        ["plan", config, "--budget", "1GiB", "--html", out],
        ["plan", config, "--budget", "1GiB", "-o", out],
        ["score", config, "--data", str(short_text), "-o", out],
        ["prune", config, "--set", "intermediate_size=8", "--data", str(short_text), "-o", out],
        ["distill", config, "--teacher", config, "--data", str(short_text), "-o", out],
        ["compress", config, "--budget", "1MiB", "--data", str(short_text), "-o", out],
    ]
    before = names(tmp_path)
    with holder(Path(out)) as process:
        for command in commands:
            for more in ([], ["--overwrite"]):
                assert run([*command, *more]) == 2, command
                told = capsys.readouterr().err
                assert f"{out} is being written by process {process.pid} on " in told, told
                assert told.count("\n") == 1 and "; wait until it ends" in told
    assert names(tmp_path) == before


def test_the_working_folder_of_a_distillation_is_held_too(
    tiny_llama: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", str(tiny_hybrid), "--teacher", str(tiny_llama), "--data", str(short_text)]
    with holder(tmp_path / "work"):
        assert run([*command, "-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
        assert "work is being written by process" in capsys.readouterr().err


def test_a_lock_ends_with_its_process_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with holder(out) as process:
        process.kill()
    assert (tmp_path / "new" / ".out.lock").exists()
    (tmp_path / "new" / ".out.partial-1").mkdir()
    with sole(out):
        assert names(tmp_path / "new") == [".out.lock"]
    assert names(tmp_path / "new") == []
    with locked(tmp_path / "other" / "out"):
        assert names(tmp_path / "other") == [".out.lock"]
    assert names(tmp_path) == ["new"]


def test_what_is_inside_is_held_with_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out), locked(out / "inside" / "deep"), locked(out):
        assert not out.exists()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with holder(tmp_path / "target") as process:
        for place in (tmp_path / "link", tmp_path / "link" / "inside"):
            with pytest.raises(MinitronError, match=f"target is being written by process {process.pid}"), locked(place):
                pass
        # Of the processes of one run the first asks for all.
        with locked(tmp_path / "link", first=False):
            pass


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MinitronError, match="leads back to itself"), locked(tmp_path / "loop"):
        pass
