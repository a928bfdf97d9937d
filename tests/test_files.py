"""A file or a folder is complete or absent, whatever happens to the process that writes it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minitron import files
from minitron.errors import MinitronError

# Writes half of an output, says so, and waits to be killed.
HALF_A_FOLDER = """
import sys, time
from pathlib import Path
from minitron.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""
HALF_A_FILE = """
import sys, time
from pathlib import Path
from minitron.files import new_file
with new_file(Path(sys.argv[1])) as file:
    file.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""
# Replaces a folder, and dies between the two renames.
HALF_A_SWAP = """
import os, signal, sys
from pathlib import Path
from minitron import files
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_and_die
with files.new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "new").write_text("new")
"""


def kill_in_the_middle(script: str, output: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "half\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_folder_is_absent_and_its_remains_go_with_the_next_one(tmp_path: Path) -> None:
    output = tmp_path / "model [1]"
    kill_in_the_middle(HALF_A_FOLDER, output)
    assert not output.exists()
    assert [name.rstrip("0123456789") for name in names(tmp_path)] == [".model [1].lock", ".model [1].partial-"]
    with files.new_folder(output) as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == ["model [1]"]
    assert names(output) == ["whole"]


def test_a_killed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with files.new_folder(output) as folder:
        (folder / "old").write_text("old")
    kill_in_the_middle(HALF_A_FOLDER, output)
    assert names(output) == ["old"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with files.new_folder(output) as folder:
        (folder / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", HALF_A_SWAP, str(output)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    with pytest.raises(MinitronError, match="exists already"), files.new_folder(output):
        raise AssertionError("the old folder is back before the block runs")
    assert names(tmp_path) == ["model"]
    assert names(output) == ["old"]


def test_a_killed_file_is_absent_and_its_remains_go_with_the_next_one(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    kill_in_the_middle(HALF_A_FILE, output)
    assert not output.exists()
    files.write_json(output, {"whole": True})
    assert names(tmp_path) == ["plan.json"]
    assert files.read_json(output) == {"whole": True}


def test_the_old_folder_stays_until_the_end(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with files.new_folder(output) as folder:
        (folder / "old").write_text("old")
    with files.new_folder(output, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert names(output) == ["old"]
    assert names(output) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), files.new_folder(output) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    files.write_text(tmp_path / "text", "old")
    with pytest.raises(ValueError, match="stop"), files.new_file(tmp_path / "text") as file:
        file.write_text("half")
        raise ValueError("stop")
    assert names(tmp_path) == ["text"]
    assert (tmp_path / "text").read_text() == "old"


@pytest.mark.parametrize("script", [HALF_A_FILE, HALF_A_FOLDER])
def test_what_another_living_process_writes_is_left_alone(script: str, tmp_path: Path) -> None:
    output = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        before = names(tmp_path)
        held = rf"model is being written by process {process.pid} on \S+ since 20.*; wait until it ends"
        for place in (output, output / "inside"):
            with pytest.raises(MinitronError, match=held), files.new_folder(place, overwrite=True):
                pass
            with pytest.raises(MinitronError, match=held):
                files.write_text(place, "text")
        assert names(tmp_path) == before
        process.kill()
    assert names(tmp_path) == before
    files.write_text(output, "text")
    assert names(tmp_path) == ["model"]


def test_a_folder_is_written_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    with files.new_folder(link, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert link.is_symlink()
    assert names(target) == ["new"]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(MinitronError, match="exists already"):
        files.refuse_existing(tmp_path / "file", overwrite=False)
    files.refuse_existing(tmp_path / "file", overwrite=True)
    files.refuse_existing(tmp_path / "absent", overwrite=False)
    with pytest.raises(MinitronError, match="is a file"), files.new_folder(tmp_path / "file", overwrite=True):
        pass
    with pytest.raises(MinitronError, match="is a folder"):
        files.write_text(tmp_path, "text")
    assert (tmp_path / "file").read_text() == "text"


def test_an_output_that_would_destroy_an_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models" / "parent"
    model.mkdir(parents=True)
    for output in (model, tmp_path / "models", tmp_path / "models" / "x" / ".." / "parent"):
        with pytest.raises(MinitronError, match="the input"):
            files.refuse_existing(output, overwrite=True, inputs=[model])
    files.refuse_existing(model / "pruned", overwrite=True, inputs=[model])
    monkeypatch.chdir(model)
    with pytest.raises(MinitronError, match="current or the home folder"):
        files.refuse_existing(tmp_path / "models", overwrite=True)


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "latin.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    for name, told in (
        ("absent.json", "does not exist"),
        ("half.json", "not valid JSON"),
        ("latin.json", "not valid"),
        (".", "folder"),
    ):
        with pytest.raises(MinitronError, match=told):
            files.read_json(tmp_path / name)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


def test_runs_share_a_scratch_folder_and_remove_what_killed_ones_left(tmp_path: Path) -> None:
    script = HALF_A_FOLDER.replace("new_folder(Path(sys.argv[1]), overwrite=True)", "shared_scratch(Path(sys.argv[1]))")
    script = script.replace("import new_folder", "import shared_scratch")
    kill_in_the_middle(script, tmp_path)
    (left,) = (name for name in names(tmp_path) if not name.endswith(".lock"))
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None and living.stdout.readline() == "half\n"
        with files.shared_scratch(tmp_path) as mine:
            (mine / "states").write_text("states")
        (other,) = (name for name in names(tmp_path) if not name.endswith(".lock"))
        assert other != left and names(tmp_path / other) == ["half"]
        living.kill()
    with files.shared_scratch(tmp_path):
        pass
    assert names(tmp_path) == []
