"""Distillation from end to end on tiny models: what is learned, what is written, and what survives a kill."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.checkpoints import Checkpoints, read_weights
from distill.run.loop import Stopped
from distill.run.objective import Objective
from distill.run.output import write_student
from distill.run.result import DistillResult
from distill.run.router_load import counted, load_of
from distill.run.train import distill
from distill.run.trainer import Pass, Trainer
from distill.text.data import Part, Text, read_text
from distill.text.tokens import Tokens
from minitron.errors import MinitronError
from minitron.measure import quality
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.progress import Advance

RECIPE = Recipe(
    steps=8, sequence_length=16, batch_tokens=96, micro_batch=4, learning_rate=0.01, warmup_steps=2, precision="fp32",
    validate_every=4, validation_sequences=6, checkpoint_every=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller hybrid than the teacher, with every kind of layer."""
    return tiny_models.save_hybrid(
        tmp_path_factory.mktemp("student") / "model", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4
    )


@pytest.fixture(scope="module")
def undisturbed(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> DistillResult:
    """The run of RECIPE from the first step to the last."""
    return distill(student, tiny_hybrid, short_text, tmp_path_factory.mktemp("run") / "out", RECIPE)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def require_equal(one: DistillResult, other: DistillResult) -> None:
    """Losses, curve and weights are the same bit for bit."""
    assert one.losses == other.losses and one.curve == other.curve
    ours, theirs = weights(one.output), weights(other.output)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_student_comes_nearer_to_its_teacher(undisturbed: DistillResult) -> None:
    longer = undisturbed.curve
    assert [point["step"] for point in longer] == [0, 4, 8]
    assert undisturbed.kl_after < 0.7 * undisturbed.kl_before
    assert undisturbed.steps == len(undisturbed.losses) == 8 and undisturbed.tokens == 8 * 96
    assert json.loads(json.dumps(undisturbed.to_json()))["kl_after"] == undisturbed.kl_after


def test_validation_equals_whole_logits(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path
) -> None:
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    ids = torch.from_numpy(text.validation)
    teacher = load_model(tiny_hybrid, dtype=torch.bfloat16)
    for folder, kl, perplexity in (
        (student, undisturbed.kl_before, undisturbed.perplexity_before),
        (undisturbed.output, undisturbed.kl_after, undisturbed.perplexity_after),
    ):
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(ids).logits.double(), -1)
            log_q = torch.log_softmax(load_model(folder, dtype=torch.float32)(ids).logits.double(), -1)
        assert math.isclose(kl, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel_tol=1e-4)
        nll = -log_q[:, :-1].gather(-1, ids[:, 1:, None]).mean()
        assert math.isclose(perplexity, math.exp(float(nll)), rel_tol=1e-4)


def test_the_first_steps_are_those_of_a_plain_loop(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path
) -> None:
    """Whole logits, one batch without micro-batches, torch's AdamW: the same losses to fp32 rounding."""
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    teacher = load_model(tiny_hybrid, dtype=torch.bfloat16)
    model = load_model(student, dtype=torch.float32).requires_grad_(True)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    losses = []
    for step in range(4):
        ids = torch.from_numpy(text.batch(6 * step, 6, seed=0).ids)
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(ids).logits.float(), -1)
        loss = (log_p.exp() * (log_p - torch.log_softmax(model(ids).logits, -1))).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = [0.01 / 3, 0.02 / 3, 0.01, 0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi / 5))][step]
        optimizer.step()
        losses.append(loss.item())
    assert undisturbed.losses[:4] == pytest.approx(losses, rel=1e-4)


def test_every_kind_of_weight_is_trained_and_the_correction_bias_is_kept(
    undisturbed: DistillResult, student: Path
) -> None:
    before, after = weights(student), weights(undisturbed.output)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.endswith("e_score_correction_bias")} != set()


def test_the_output_is_the_students_folder_with_other_numbers(undisturbed: DistillResult, student: Path) -> None:
    ours, theirs = Checkpoint(undisturbed.output).headers, Checkpoint(student).headers
    assert {name: (header.dtype, header.shape) for name, header in ours.items()} == {
        name: (header.dtype, header.shape) for name, header in theirs.items()
    }
    for file in student.iterdir():
        if file.suffix != ".safetensors":
            assert (undisturbed.output / file.name).read_bytes() == file.read_bytes()
    card = (undisturbed.output / "README.md").read_text()
    assert f"{undisturbed.kl_after:.4f}" in card and "SHA-256" in card and "learning rate: 0.01" in card
    _, info = AutoModelForCausalLM.from_pretrained(undisturbed.output, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [path.name for path in undisturbed.output.parent.iterdir()] == ["out"]


class Killed(BaseException):
    """What no handler catches, as kill -9."""


def stop_after(step: int, how: Any) -> Any:
    """A progress that calls `how` when the bar of the training has advanced `step` times."""

    @contextmanager
    def progress(description: str, total: float, unit: str) -> Iterator[Advance]:
        calls = 0

        def advance(amount: float, note: str = "") -> None:
            nonlocal calls
            calls += 1
            if calls == step and description == "distilling":
                how()

        yield advance

    return progress


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    step: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(Killed):
        distill(student, tiny_hybrid, short_text, output, RECIPE, progress=stop_after(step, kill))
    assert not output.exists()
    assert Checkpoints(tmp_path / "out.work", Processes()).newest() == (
        tmp_path / "out.work/checkpoints/step-00000004" if step >= 4 else None
    )
    require_equal(distill(student, tiny_hybrid, short_text, output, RECIPE), undisturbed)


@pytest.mark.parametrize("step", [3, 6])
def test_checkpoints_behind_the_steps_are_those_of_their_moment(
    step: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe, output = replace(RECIPE, checkpoint_every=1, async_checkpoints=True), tmp_path / "out"
    with pytest.raises(Stopped):
        send = stop_after(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        distill(student, tiny_hybrid, short_text, output, recipe, progress=send)
    saved = sorted(path.name for path in (tmp_path / "out.work/checkpoints").iterdir())
    assert saved == [f"step-{step:08d}", f"step-{step + 1:08d}"]
    # The older of them: it was written while the next step changed the weights.
    shutil.rmtree(tmp_path / "out.work/checkpoints" / saved[1])
    require_equal(distill(student, tiny_hybrid, short_text, output, recipe), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_in_hand_and_stops(
    number: int, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output, handlers = tmp_path / "out", [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    send = stop_after(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped):
        distill(student, tiny_hybrid, short_text, output, RECIPE, progress=send)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    work = tmp_path / "out.work"
    # The signal comes when step 2 is done; step 3 sees it.
    assert Checkpoints(work, Processes()).newest() == work / "checkpoints/step-00000003"
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    finished = distill(student, tiny_hybrid, short_text, output, RECIPE, progress=stop_after(5, lambda: keep(work)))
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


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_best_weights_are_kept_beside_the_last(
    select: str, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, validate_every=2, patience=2, select=select)
    output, notes = tmp_path / "out", list[str]()
    with monkeypatch.context() as patch:
        worsening(patch, [3.0, 1.0, 2.0, 1.0])
        found = distill(student, tiny_hybrid, short_text, output, recipe, note=notes.append)
    assert [point["step"] for point in found.curve] == [0, 2, 4, 6]
    assert (found.steps, found.selected_step) == (6, 2 if select == "best" else 6)
    assert any("Ended after step 6 of 8" in note for note in notes)
    best, last = (output, tmp_path / "out.last") if select == "best" else (tmp_path / "out.best", output)
    for folder, steps in ((best, 2), (last, 6)):
        plain = replace(RECIPE, validate_every=8, steps=8)
        with pytest.raises(Stopped):
            send = stop_after(steps - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
            distill(student, tiny_hybrid, short_text, tmp_path / f"{steps}", plain, progress=send)
        checkpoint = Checkpoints(tmp_path / f"{steps}.work", Processes()).newest()
        assert checkpoint is not None and checkpoint.name.endswith(f"{steps}")
        kept = read_weights(checkpoint)
        written = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
        for name, parameter in written.named_parameters():
            # To the rounding of bf16, in which they are written.
            torch.testing.assert_close(parameter.detach(), kept[name], rtol=2**-8, atol=1e-6)
    with pytest.raises(MinitronError, match="exists"):
        distill(student, tiny_hybrid, short_text, output, recipe)


def test_a_torn_checkpoint_is_never_picked_and_old_ones_go(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, checkpoint_every=1)
    with pytest.raises(Killed):
        distill(student, tiny_hybrid, short_text, tmp_path / "out", recipe, progress=stop_after(5, kill))
    saved = tmp_path / "out.work/checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000004", "step-00000005"]
    (torn,) = (saved / "step-00000005").glob("*.safetensors")
    with torn.open("r+b") as file:
        file.truncate(1000)
    (saved / "step-00000006").mkdir()
    assert Checkpoints(tmp_path / "out.work", Processes()).newest() == saved / "step-00000004"
    require_equal(distill(student, tiny_hybrid, short_text, tmp_path / "out", recipe), undisturbed)


def test_another_run_does_not_go_on_from_anothers_checkpoints(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        distill(student, tiny_hybrid, short_text, tmp_path / "out", RECIPE, progress=stop_after(5, kill))
    other = replace(RECIPE, seed=1)
    with pytest.raises(MinitronError, match=r"another recipe\.seed"):
        distill(student, tiny_hybrid, short_text, tmp_path / "out", other)
    assert distill(student, tiny_hybrid, short_text, tmp_path / "out", other, overwrite=True).steps == 8


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
    whole = distill(student, tiny_hybrid, short_text, tmp_path / "whole", RECIPE)
    assert [math.isnan(loss) for loss in whole.losses] == [False, False, True, True, False, True, False, False]
    assert whole.skipped == whole.to_json()["skipped_steps"] == 3 and whole.kl_after < whole.kl_before
    with pytest.raises(Killed):
        distill(student, tiny_hybrid, short_text, tmp_path / "again", RECIPE, progress=stop_after(6, kill))
    again = distill(student, tiny_hybrid, short_text, tmp_path / "again", RECIPE)
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert all(torch.equal(tensor, weights(whole.output)[name]) for name, tensor in weights(again.output).items())


def test_losses_that_are_not_finite_stop_and_keep_the_last_checkpoint(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {4, 5})
    with pytest.raises(MinitronError, match=r"step 6 is nan.*2 steps in a row.*step-00000004"):
        distill(student, tiny_hybrid, short_text, tmp_path / "out", replace(RECIPE, most_skipped=1))
    assert not (tmp_path / "out").exists()
    saved = read_weights(tmp_path / "out.work/checkpoints/step-00000004")
    assert saved and all(torch.isfinite(tensor).all() for tensor in saved.values())


def run_process(rank: int, folder: Path, arguments: dict[str, Any], stop: int | None = None) -> None:
    """One of two processes of a run; given `stop`, it dies without a word after so many steps."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    progress = {} if stop is None else {"progress": stop_after(stop, kill)}
    try:
        distill(**arguments, output=folder / "out", processes=Processes(rank, 2), **progress)
    except Killed:
        os._exit(0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_two_processes_take_the_same_steps_as_one(
    precision: str, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    arguments = {"student": student, "teacher": tiny_hybrid, "data": short_text, "recipe": RECIPE}
    arguments |= {"teacher_precision": precision}
    torch.multiprocessing.spawn(run_process, (tmp_path, arguments), nprocs=2)
    alone = undisturbed if precision == "bf16" else distill(**arguments, output=tmp_path / "alone")
    ours, theirs = weights(tmp_path / "out"), weights(alone.output)
    for name, tensor in theirs.items():
        # AdamW divides by the root of the mean square: where that is tiny, the order of a sum shows.
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-3)
    (line,) = (line for line in (tmp_path / "out/README.md").read_text().splitlines() if line.startswith("| KL"))
    assert float(line.split("|")[-3]) == pytest.approx(alone.kl_after, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} - {"group", "alone"} == {"out"}


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_one_process_goes_on_where_two_stopped(
    behind: bool, undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, async_checkpoints=behind)
    arguments = {"student": student, "teacher": tiny_hybrid, "data": short_text, "recipe": recipe}
    torch.multiprocessing.spawn(run_process, (tmp_path, arguments, 6), nprocs=2)
    assert [path.name for path in (tmp_path / "out.work/checkpoints").iterdir()] == ["step-00000004"]
    result = distill(**arguments, output=tmp_path / "out")
    assert result.losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_llama_tied"])
def test_a_llama_in_bf16_learns_from_an_fp8_teacher(
    model: str, request: pytest.FixtureRequest, short_text: Path, tmp_path: Path
) -> None:
    student = tiny_models.save_llama(tmp_path / "student", tied=model.endswith("tied"), seed=1, num_hidden_layers=2)
    recipe = replace(RECIPE, precision="bf16", steps=None, tokens=400)
    result = distill(
        student, request.getfixturevalue(model), short_text, tmp_path / "out", recipe, teacher_precision="fp8"
    )
    assert result.steps == 4 and result.kl_after < result.kl_before
    assert result.drift is not None and result.drift.stored_bytes < result.drift.bf16_bytes
    assert result.perplexity_teacher == result.drift.perplexity
    assert f"{result.drift.kl:.3g}" in (result.output / "README.md").read_text()
    assert weights(result.output).keys() == weights(student).keys()


def test_what_transformers_does_not_build_is_copied(tiny_hybrid: Path, tmp_path: Path) -> None:
    """A bf16 checkpoint in two shards, with an MTP block, a tied output layer spelt out, and files of its own."""
    student = tmp_path / "student"
    shutil.copytree(tiny_hybrid, student)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(student / "model.safetensors").items()}
    tensors["mtp.layers.0.norm.weight"] = torch.arange(32.0)
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
    (student / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, student / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((student / "config.json").read_text()) | {"tie_word_embeddings": True, "hybrid_extra": "MEM*"}
    (student / "config.json").write_text(json.dumps(config))

    model = load_model(student, dtype=torch.float32)
    with torch.no_grad():
        model.model.embeddings.weight.add_(1)
    write_student(model, student, tmp_path / "out", card="card")
    written = weights(tmp_path / "out")
    tied = model.model.embeddings.weight is model.lm_head.weight
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        changed = name == "backbone.embeddings.weight" or (tied and name == "lm_head.weight")
        expected = (tensor.float() + 1).bfloat16() if changed else tensor
        assert torch.equal(written[name], expected) and written[name].dtype == tensor.dtype
    assert json.loads((tmp_path / "out/config.json").read_text()) == config


def test_batches_depend_on_position_and_seed_alone() -> None:
    tokens = Tokens(np.arange(10, dtype=np.int32), None, 0, ())
    text = Text((Part("ten", 1.0, tokens, 10, 1),), np.zeros((1, 1), dtype=np.int64), {})
    whole = text.batch(0, 30, seed=3).ids[:, 0]
    assert all(sorted(whole[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert not np.array_equal(whole[:10], whole[10:20])
    pieces = [text.batch(start, 7, seed=3).ids[:, 0] for start in range(0, 28, 7)]
    assert np.array_equal(np.concatenate(pieces), whole[:28])
    assert not np.array_equal(text.batch(0, 10, seed=4).ids[:, 0], whole[:10])


def test_no_held_out_sequence_is_trained_on(student: Path, short_text: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(student)
    text = read_text(tokenizer, short_text, sequence_length=16, validation_sequences=100)
    total = text.parts[0].sequences + len(text.validation)
    assert len(text.validation) == total // 10
    trained = [text.parts[0].sequence(number)[0] for number in range(text.parts[0].sequences)]
    joined = np.concatenate([trained, text.validation])
    ids = tokenizer(short_text.read_text(), add_special_tokens=False)["input_ids"]
    assert joined.flatten().tolist() == ids[: total * 16]
    other = tiny_models.write_text(tmp_path / "other.txt", seed=5)
    apart = read_text(tokenizer, short_text, sequence_length=16, validation=other, validation_sequences=7)
    assert apart.parts[0].sequences == total and len(apart.validation) == 7


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 400), warmup=st.none() | st.integers(0, 100))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end(steps: int, warmup: int | None) -> None:
    recipe = Recipe(steps=steps, learning_rate=3e-4, warmup_steps=None if warmup is None else min(warmup, steps))
    rates = [recipe.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 3e-4 for rate in rates)
    peak = min(100, steps // 10) if recipe.warmup_steps is None else recipe.warmup_steps
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if peak < steps:
        assert rates[peak] == pytest.approx(3e-4)
    if peak < steps - 1:
        assert rates[-1] == pytest.approx(3e-5)


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
    whole = distill(student, tiny_hybrid, short_text, tmp_path / "whole", recipe)
    assert whole.losses[-1] < whole.losses[0]
    with pytest.raises(Killed):
        distill(student, tiny_hybrid, short_text, tmp_path / "again", recipe, progress=stop_after(6, kill))
    again = distill(student, tiny_hybrid, short_text, tmp_path / "again", recipe)
    assert again.losses == whole.losses
    assert weights(again.output).keys() == weights(student).keys()
    assert all(torch.equal(tensor, weights(whole.output)[name]) for name, tensor in weights(again.output).items())


def test_of_routers_alone_nothing_else_changes(
    student: Path, tiny_hybrid: Path, tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    result = distill(student, tiny_hybrid, short_text, tmp_path / "out", replace(RECIPE, train="router"))
    before = weights(student)
    changed = {name for name, tensor in weights(result.output).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("mixer.gate.weight")}
    with pytest.raises(MinitronError, match="no routers"):
        dense = tiny_models.save_llama(tmp_path / "dense", seed=2)
        distill(dense, tiny_llama, short_text, tmp_path / "no", replace(RECIPE, train="router"))


def test_routers_may_stay_as_they_are(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    result = distill(student, tiny_hybrid, short_text, tmp_path / "out", replace(RECIPE, train="all-but-router"))
    before = weights(student)
    same = {name for name, tensor in weights(result.output).items() if torch.equal(tensor, before[name])}
    assert same == {name for name in before if ".gate." in name}


def test_the_load_of_experts_is_told(
    undisturbed: DistillResult, student: Path, tiny_llama: Path, short_text: Path
) -> None:
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    model, chosen = load_model(student, dtype=torch.float32, device=torch.device("cpu")), list[Tensor]()
    (gate,) = (module for name, module in model.named_modules() if name.endswith(".gate"))
    gate.register_forward_hook(lambda module, given, found: chosen.append(found[2]))
    with torch.no_grad():
        model(torch.from_numpy(text.validation))
    counts = [sum(int((part == expert).sum()) for part in chosen) for expert in range(4)]
    point = undisturbed.curve[0]
    assert point["busiest_expert"] == pytest.approx(max(counts) / (sum(counts) / 4))
    assert point["idle_experts"] == counts.count(0)
    assert "the busiest expert gets" in (undisturbed.output / "README.md").read_text()
    with counted(load_model(tiny_llama)) as found:
        assert load_of(found) == {}


def test_a_teacher_may_have_a_device_of_its_own(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    result = distill(student, tiny_hybrid, short_text, tmp_path / "out", RECIPE, teacher_device="cpu")
    require_equal(result, undisturbed)
    # There is no second device here that computes; of what crosses over the output layer is copied once.
    small, large = (load_model(folder, device=torch.device("cpu")) for folder in (student, tiny_hybrid))
    objective, head = Objective(small, large, RECIPE), large.get_output_embeddings().weight
    assert objective._teacher_head(torch.device("cpu")) is head
    copied = objective._teacher_head(torch.device("meta"))
    assert copied.is_meta and copied.shape == head.shape
    assert objective._teacher_head(torch.device("meta")) is copied


def test_activations_made_anew_are_the_same(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, activation_checkpointing=True)
    assert distill(student, tiny_hybrid, short_text, tmp_path / "out", recipe).losses == undisturbed.losses


def test_a_teacher_with_a_padded_vocabulary_teaches_the_same(
    student: Path, tiny_hybrid: Path, undisturbed: DistillResult, short_text: Path, tmp_path: Path
) -> None:
    wider = tiny_models.padded_vocabulary(tiny_hybrid, tmp_path / "wider", 20)
    found = distill(student, wider, short_text, tmp_path / "out", RECIPE)
    np.testing.assert_allclose(found.losses, undisturbed.losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either tokens or steps"),
        ({"tokens": 5000, "steps": 5}, "not both"),
        ({"steps": 0}, "steps is 0"),
        ({"tokens": 100}, "less than one step"),
        ({"steps": 5, "batch_tokens": 1000}, "no multiple"),
        ({"steps": 5, "sequence_length": 1, "batch_tokens": 4}, "2 or more"),
        ({"steps": 5, "learning_rate": math.nan}, "learning rate is nan"),
        ({"steps": 5, "learning_rate": 1e-4, "minimum_learning_rate": 1e-3}, "above the highest"),
        ({"steps": 5, "warmup_steps": 6}, "do not fit"),
        ({"steps": 5, "precision": "fp16"}, "bf16, fp32"),
        ({"steps": 5, "loss": "cosine"}, "forward_kl"),
        ({"steps": 5, "temperature": 0.0}, "temperature is 0"),
        ({"steps": 5, "lm_weight": -1.0}, "lm weight is -1"),
        ({"steps": 5, "loss": "top_k:4", "vocab_chunk": 8}, "whole vocabulary"),
        ({"steps": 5, "betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MinitronError, match=words):
        Recipe(**fields)


def other_vocabulary(folder: Path) -> Path:
    return tiny_models.save_llama(folder, vocab_size=200)


def other_tokenizer(folder: Path) -> Path:
    path = tiny_models.save_llama(folder)
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"</s>"', '"</t>"'))
    return path


def truncated(folder: Path) -> Path:
    path = tiny_models.save_llama(folder)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_vocabulary, "vocabulary of 200 tokens and its tokenizer gives 300"),
        (other_tokenizer, "different tokenizers"),
        (truncated, "truncated"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    make: Any, words: str, student: Path, short_text: Path, tmp_path: Path
) -> None:
    teacher = make(tmp_path / "teacher")
    with pytest.raises(MinitronError, match=words):
        distill(student, teacher, short_text, tmp_path / "out", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_other_inputs_that_do_not_fit_are_refused(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output, short = tmp_path / "out", tmp_path / "short.txt"
    short.write_text("three birds")

    def refused(words: str, **changes: Any) -> None:
        arguments = {"student": student, "teacher": tiny_hybrid, "data": short_text, "output": output, "recipe": RECIPE}
        with pytest.raises(MinitronError, match=words):
            distill(**arguments | changes)

    refused("both student and teacher", teacher=student)
    refused("less than one sequence", data=short)
    refused("less than one sequence", validation=short)
    refused("too few to hold one out", recipe=replace(RECIPE, sequence_length=2000, batch_tokens=2000))
    refused("is a training text", validation=short_text)
    refused("does not exist", data=tmp_path / "absent.txt")
    refused("choose one of bf16, fp8", teacher_precision="int3")
    refused("is or holds the input", output=student, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    output.mkdir()
    refused("exists already")
    output.rmdir()
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work/diary.txt").write_text("dear diary")
    refused("no distillation's working folder")
    assert not output.exists()
