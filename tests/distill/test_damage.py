"""A run that goes on over damage, or from other inputs: the same weights, or a refusal."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilling import RECIPE, Killed, kill, require_equal, stop_after, weights
from safetensors.torch import load_file, save_file

from distill.run.distillation import Distillation
from distill.run.result import DistillResult
from distill.run.train import distill
from minitron.errors import MinitronError

# With the weights of the best validation: it is worse at the end, at so high a rate.
BEST = replace(RECIPE, validate_every=1, checkpoint_every=2, select="best", learning_rate=3.0)


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture(scope="module")
def best(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillResult, Path]:
    """What BEST gives, and the working folder of a run of it that was killed after some steps."""
    folder = tmp_path_factory.mktemp("best")
    with pytest.raises(Killed):
        distill(Distillation(student, tiny_hybrid, short_text, folder / "out"), BEST, progress=stop_after(7, kill))
    shutil.copytree(folder / "out.work", folder / "kept")
    whole = distill(Distillation(student, tiny_hybrid, short_text, folder / "out"), BEST)
    assert whole.selected_step < 7 and (folder / "kept/best").is_dir()
    return whole, folder / "kept"


def test_one_flipped_bit_anywhere_is_found(
    best: tuple[DistillResult, Path], student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    whole, kept = best
    chance = random.Random(0)
    files = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file() and path.stat().st_size]
    assert {path.parts[0] for path in files} == {
        *("run.json", "start.json", "metrics.jsonl", "tokens", "checkpoints", "best")
    }
    refused, older = [], []
    for number, path in enumerate(files):
        output, notes = tmp_path / f"{number}", list[str]()
        work = shutil.copytree(kept, tmp_path / f"{number}.work")
        flip(work / path, chance.randrange((work / path).stat().st_size), chance.randrange(8))
        try:
            found = distill(Distillation(student, tiny_hybrid, short_text, output), BEST, note=notes.append)
        except MinitronError as error:
            assert "damaged" in str(error) and str(work / path.parent) in str(error)
            refused.append(path.parts[0])
            continue
        require_equal(found, whole)
        assert not work.exists()
        older += [path.name for note in notes if "is damaged" in note and "resuming from step-00000004" in note]
    assert sorted(set(refused)) == ["best", "run.json", "start.json", "tokens"]
    assert len(older) == sum(path.parent.name == "step-00000006" for path in files)


def test_damage_that_leaves_no_checkpoint_is_refused_and_overwritten(
    best: tuple[DistillResult, Path], student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    whole, kept = best
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    work = shutil.copytree(kept, tmp_path / "out.work")
    for path in work.glob("checkpoints/*/state.json"):
        flip(path, path.stat().st_size // 2, 0)
    with pytest.raises(MinitronError, match=r"step-00000006 is damaged.*no other checkpoint is whole"):
        distill(asked, BEST)
    flip(work / "run.json", 10, 0)
    with pytest.raises(MinitronError, match=r"run.json is .*--overwrite to start again"):
        distill(asked, BEST)
    require_equal(distill(replace(asked, overwrite=True), BEST), whole)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_other_weights_under_the_same_config_do_not_go_on(
    which: str, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    folders = {name: shutil.copytree(path, tmp_path / name) for name, path in
               (("student", student), ("teacher", tiny_hybrid))}  # fmt: skip
    asked = Distillation(folders["student"], folders["teacher"], short_text, tmp_path / "out")
    with pytest.raises(Killed):
        distill(asked, RECIPE, progress=stop_after(5, kill))
    file = folders[which] / "model.safetensors"
    before, times = load_file(file), file.stat()
    changed = {name: tensor.clone() for name, tensor in before.items()}
    next(iter(changed.values())).view(-1)[0] += 1
    save_file(changed, file, metadata={"format": "pt"})
    # The same size and time of writing: the time of the change tells.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(MinitronError, match=rf"holds a run with another {which}\.weights\.sha256"):
        distill(asked, RECIPE)
    save_file(before, file, metadata={"format": "pt"})
    require_equal(distill(asked, RECIPE), undisturbed)


@pytest.mark.parametrize("left", ["half", "link", "file in it", "another recipe", "old version", "partials"])
def test_overwrite_refuses_nothing_that_a_run_left(
    left: str, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    work = tmp_path / "out.work"
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out", overwrite=True)
    if left == "half":
        (work / "checkpoints/step-00000004").mkdir(parents=True)
    elif left == "link":
        work.symlink_to(tmp_path / "elsewhere")
        asked.output.symlink_to(tmp_path / "other")
    elif left == "partials":
        for name in (".out.partial-1", ".out.work.partial-1.gone", ".out.partial-2.old"):
            (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / ".out.lock").touch()
    else:
        work.mkdir()
        (work / "run.json").write_text('{"recipe": {}}' if left == "old version" else "{")
        (work / "checkpoints/step-00000004").mkdir(parents=True)
    if left == "file in it":
        (work / "run.json").unlink()
        (work / "mine.txt").write_text("precious")
        with pytest.raises(MinitronError, match=r"is not the working folder .*\(it holds mine.txt\)"):
            distill(asked, RECIPE)
        assert (work / "mine.txt").read_text() == "precious"
        return
    require_equal(distill(asked, RECIPE), undisturbed)
    assert {path.name for path in tmp_path.iterdir()} - {"other"} == (
        {"out", "out.work"} if left == "link" else {"out"}
    )


def test_an_error_before_the_first_step_leaves_no_working_folder(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")

    def fails(*given: object, **named: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("distill.run.train.load_model", fails)
        with pytest.raises(OSError, match="no more"):
            distill(asked, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_output_is_there_is_closed(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("distill.run.work.Work.close", lambda self: kill())
        distill(asked, RECIPE)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.work"}
    written = (tmp_path / "out/model.safetensors").stat().st_ino
    require_equal(distill(asked, RECIPE), undisturbed)
    assert (tmp_path / "out/model.safetensors").stat().st_ino == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(MinitronError, match="exists already"):
        distill(asked, RECIPE)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights(asked.output).values())
