"""Runs that stop: killed, signalled, torn, not finite, in two processes; and what goes on bit for bit."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from distilling import RECIPE, Killed, kill, require_equal, stop_after, weights
from torch import Tensor

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.checkpoints import Checkpoints, read_weights
from distill.run.distillation import Distillation
from distill.run.loop import Stopped
from distill.run.result import DistillResult
from distill.run.train import distill
from distill.run.trainer import Pass, Trainer
from minitron.errors import MinitronError
from minitron.measure import quality
from minitron.model.loading import load_model
from minitron.progress import silent


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    step: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(Killed):
        distill(Distillation(student, tiny_hybrid, short_text, output), RECIPE, progress=stop_after(step, kill))
    assert not output.exists()
    assert Checkpoints(tmp_path / "out.work", Processes()).newest() == (
        tmp_path / "out.work/checkpoints/step-00000004" if step >= 4 else None
    )
    require_equal(distill(Distillation(student, tiny_hybrid, short_text, output), RECIPE), undisturbed)


@pytest.mark.parametrize("step", [3, 6])
def test_checkpoints_behind_the_steps_are_those_of_their_moment(
    step: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe, output = replace(RECIPE, checkpoint_every=1, async_checkpoints=True), tmp_path / "out"
    with pytest.raises(Stopped):
        send = stop_after(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        distill(Distillation(student, tiny_hybrid, short_text, output), recipe, progress=send)
    saved = sorted(path.name for path in (tmp_path / "out.work/checkpoints").iterdir())
    assert saved == [f"step-{step:08d}", f"step-{step + 1:08d}"]
    # The older of them: it was written while the next step changed the weights.
    shutil.rmtree(tmp_path / "out.work/checkpoints" / saved[1])
    require_equal(distill(Distillation(student, tiny_hybrid, short_text, output), recipe), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_in_hand_and_stops(
    number: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output, handlers = tmp_path / "out", [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    send = stop_after(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped):
        distill(Distillation(student, tiny_hybrid, short_text, output), RECIPE, progress=send)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    work = tmp_path / "out.work"
    # The signal comes when step 2 is done; step 3 sees it.
    assert Checkpoints(work, Processes()).newest() == work / "checkpoints/step-00000003"
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    finished = distill(
        Distillation(student, tiny_hybrid, short_text, output), RECIPE, progress=stop_after(5, lambda: keep(work))
    )
    require_equal(finished, undisturbed)
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == undisturbed.losses
    assert [line["validation"] for line in lines if "validation" in line] == undisturbed.curve[1:]


def keep(work: Path) -> None:
    shutil.copy(work / "metrics.jsonl", work.parent / "kept.jsonl")


def worsening(monkeypatch: pytest.MonkeyPatch, kls: list[float]) -> None:
    """Let the validations have these KLs, whatever the student says."""
    left, measure = iter(kls), quality.measure_quality

    def measured(model: Any, blocks: Any, **named: Any) -> quality.Quality:
        found = measure(model, blocks, **named)
        return found if found.kl_to_teacher is None else replace(found, kl_to_teacher=next(left))

    monkeypatch.setattr(quality, "measure_quality", measured)


@pytest.mark.parametrize("select", [pytest.param("last", marks=pytest.mark.slow), "best"])
def test_the_best_weights_are_kept_beside_the_last(
    select: str, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, validate_every=2, patience=2, select=select)
    output, notes = tmp_path / "out", list[str]()
    with monkeypatch.context() as patch:
        worsening(patch, [3.0, 1.0, 2.0, 1.0])
        found = distill(Distillation(student, tiny_hybrid, short_text, output), recipe, note=notes.append)
    assert [point["step"] for point in found.curve] == [0, 2, 4, 6]
    assert (found.steps, found.selected_step) == (6, 2 if select == "best" else 6)
    assert any("Stopped early after step 6 of 8" in note for note in notes)
    best, last = (output, tmp_path / "out.last") if select == "best" else (tmp_path / "out.best", output)
    for folder, steps in ((best, 2), (last, 6)):
        plain = replace(RECIPE, validate_every=8, steps=8)
        with pytest.raises(Stopped):
            send = stop_after(steps - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
            distill(Distillation(student, tiny_hybrid, short_text, tmp_path / f"{steps}"), plain, progress=send)
        checkpoint = Checkpoints(tmp_path / f"{steps}.work", Processes()).newest()
        assert checkpoint is not None and checkpoint.name.endswith(f"{steps}")
        kept = read_weights(checkpoint)
        written = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
        for name, parameter in written.named_parameters():
            # To the rounding of bf16, in which they are written.
            torch.testing.assert_close(parameter.detach(), kept[name], rtol=2**-8, atol=1e-6)
    with pytest.raises(MinitronError, match="exists"):
        distill(Distillation(student, tiny_hybrid, short_text, output), recipe)


def test_a_torn_checkpoint_is_never_picked_and_old_ones_go(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, checkpoint_every=1)
    with pytest.raises(Killed):
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), recipe, progress=stop_after(5, kill))
    saved = tmp_path / "out.work/checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000004", "step-00000005"]
    (torn,) = (saved / "step-00000005").glob("*.safetensors")
    with torn.open("r+b") as file:
        file.truncate(1000)
    (saved / "step-00000006").mkdir()
    assert Checkpoints(tmp_path / "out.work", Processes()).newest() == saved / "step-00000004"
    require_equal(distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), recipe), undisturbed)


def test_another_run_does_not_go_on_from_anothers_checkpoints(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), RECIPE, progress=stop_after(5, kill))
    other = replace(RECIPE, seed=1)
    with pytest.raises(MinitronError, match=r"another recipe\.seed"):
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), other)
    assert distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", overwrite=True), other).steps == 8


def break_steps(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    plain = Trainer._forward_backward

    def broken(self: Trainer, part: Pass, place: int) -> Tensor:
        loss = plain(self, part, place)
        return loss * math.nan if self.step in steps else loss

    monkeypatch.setattr(Trainer, "_forward_backward", broken)


def test_a_loss_that_is_not_finite_skips_the_step(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {2, 3, 5})
    whole = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "whole"), RECIPE)
    assert [math.isnan(loss) for loss in whole.losses] == [False, False, True, True, False, True, False, False]
    assert whole.skipped == whole.to_json()["skipped_steps"] == 3 and whole.kl_after < whole.kl_before
    with pytest.raises(Killed):
        distill(
            Distillation(student, tiny_hybrid, short_text, tmp_path / "again"), RECIPE, progress=stop_after(6, kill)
        )
    again = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "again"), RECIPE)
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert all(torch.equal(tensor, weights(whole.output)[name]) for name, tensor in weights(again.output).items())


def test_losses_that_are_not_finite_stop_and_keep_the_last_checkpoint(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {4, 5})
    with pytest.raises(MinitronError, match=r"step 6 is nan.*2 steps in a row.*step-00000004"):
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), replace(RECIPE, most_skipped=1))
    assert not (tmp_path / "out").exists()
    saved = read_weights(tmp_path / "out.work/checkpoints/step-00000004")
    assert saved and all(torch.isfinite(tensor).all() for tensor in saved.values())


def run_process(rank: int, folder: Path, asked: Distillation, recipe: Recipe, stop: int | None = None) -> None:
    """One of two processes of a run; given `stop`, it dies without a word after so many steps."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    progress = silent if stop is None else stop_after(stop, kill)
    try:
        distill(asked, recipe, processes=Processes(rank, 2), progress=progress)
    except Killed:
        os._exit(0)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=pytest.mark.slow)])
def test_two_processes_take_the_same_steps_as_one(
    precision: str, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out", teacher_precision=precision)
    forks.two(run_process, tmp_path, asked, RECIPE)
    alone = undisturbed if precision == "bf16" else distill(replace(asked, output=tmp_path / "alone"), RECIPE)
    ours, theirs = weights(tmp_path / "out"), weights(alone.output)
    for name, tensor in theirs.items():
        # AdamW divides by the root of the mean square: where that is tiny, the order of a sum shows.
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-3)
    (line,) = (line for line in (tmp_path / "out/README.md").read_text().splitlines() if line.startswith("| KL"))
    assert float(line.split("|")[-3]) == pytest.approx(alone.kl_after, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} - {"group", "alone"} == {"out"}


@pytest.mark.parametrize("behind", [False, True])
def test_one_process_goes_on_where_two_stopped(
    behind: bool, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, async_checkpoints=behind)
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    forks.two(run_process, tmp_path, asked, recipe, 6)
    assert [path.name for path in (tmp_path / "out.work/checkpoints").iterdir()] == ["step-00000004"]
    result = distill(asked, recipe)
    assert result.losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "jsd:0.3", "lm_weight": 0.5, "vocab_chunk": 70},
        {"loss": "sampled:12", "temperature": 2.0},
        {"loss": "reverse_kl", "cosine_weight": 0.5},
        {"train": "router"},
    ],
)
def test_other_losses_train_and_go_on_after_a_kill(
    change: dict[str, Any], student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, **change)
    whole = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "whole"), recipe)
    assert whole.losses[-1] < whole.losses[0]
    with pytest.raises(Killed):
        distill(
            Distillation(student, tiny_hybrid, short_text, tmp_path / "again"), recipe, progress=stop_after(6, kill)
        )
    again = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "again"), recipe)
    assert again.losses == whole.losses
    assert weights(again.output).keys() == weights(student).keys()
    assert all(torch.equal(tensor, weights(whole.output)[name]) for name, tensor in weights(again.output).items())
