"""A teacher whose layers are read one after the other: what it says is what the whole one says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from cli.app import run
from distill.losses.divergences import Loss
from distill.recipe import Recipe
from distill.run import trainer
from distill.run.distillation import Distillation
from distill.run.loop import Stopped
from distill.run.train import distill
from distill.teacher.streamed import StreamedTeacher
from minitron.measure.quality import hidden_states, measure_quality
from minitron.model.loading import load_model

CPU = torch.device("cpu")
RECIPE = Recipe(
    steps=6, sequence_length=16, batch_tokens=96, micro_batch=4, learning_rate=0.01, warmup_steps=2, precision="fp32",
    validate_every=3, validation_sequences=5, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return tiny_models.save_hybrid(tmp_path / "student", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4)


def no_progress(amount: float, note: str = "") -> None:
    return


@pytest.mark.parametrize("model", ["tiny_hybrid", "tiny_llama", "tiny_llama_tied"])
def test_it_says_what_the_whole_model_says(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    whole, teacher = load_model(folder, dtype=torch.bfloat16, device=CPU), StreamedTeacher(folder, CPU)
    blocks = np.random.default_rng(0).integers(0, tiny_models.VOCAB_SIZE, (7, 12))
    perplexity = teacher.ask_held_out(blocks[:3], 2, no_progress)
    assert perplexity == pytest.approx(measure_quality(whole, blocks[:3], batch_size=2).perplexity)
    teacher.ask(blocks[3:], 2)
    with torch.no_grad():
        for rows in (blocks[0:2], blocks[3:5], blocks[5:7]):
            ids = torch.from_numpy(rows)
            assert torch.equal(teacher.hidden_states(ids), hidden_states(whole, ids))
    assert torch.equal(teacher.weight, whole.get_output_embeddings().weight)
    # Nothing but the output layer stays.
    held = [tensor for tensor in teacher._source.model.state_dict().values() if not tensor.is_meta]
    assert sum(tensor.numel() for tensor in held) < 1.1 * teacher.weight.numel()
    teacher.ask(blocks[:1], 1)
    with pytest.raises(KeyError):
        teacher.hidden_states(torch.from_numpy(blocks[5:6]))


@pytest.mark.parametrize("ahead", [1, 2**16])
def test_a_student_learns_the_same_from_it(
    ahead: int, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_AHEAD", ahead)
    recipe = replace(RECIPE, cosine_weight=0.1)
    plain = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "plain"), recipe)
    found = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", offload_teacher=True), recipe)
    # Six sequences a step in passes of four: it reads them by two.
    assert found.losses == pytest.approx(plain.losses, abs=1e-3)
    assert found.kl_after == pytest.approx(plain.kl_after, abs=1e-3)
    assert found.perplexity_teacher == pytest.approx(plain.perplexity_teacher, rel=1e-3)


def test_a_run_that_stopped_goes_on_bit_for_bit(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "whole", offload_teacher=True), RECIPE)
    step = trainer.Trainer.train_step

    def stops(self: trainer.Trainer) -> dict[str, Any]:
        if self.step == 3:
            raise Stopped
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.Trainer, "train_step", stops)
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", offload_teacher=True), RECIPE)
    again = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", offload_teacher=True), RECIPE)
    assert again.losses == whole.losses and again.curve == whole.curve


def test_a_cache_is_written_by_it(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, loss=f"sampled:{2000}")
    assert Loss("sampled", 2000).divergence.is_unbiased
    plain = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "plain", cache=tmp_path / "c1"), recipe)
    found = distill(
        Distillation(student, tiny_hybrid, short_text, tmp_path / "out", cache=tmp_path / "c2", offload_teacher=True),
        recipe,
    )
    assert found.losses == pytest.approx(plain.losses, abs=1e-3)
    assert found.kl_after == pytest.approx(plain.kl_after, abs=1e-3)
    # What it wrote serves a run that could have held the teacher.
    again = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "again", cache=tmp_path / "c2"), recipe)
    assert again.losses == found.losses


def test_as_it_is_typed(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", str(student), "--teacher", str(tiny_hybrid), "--data", str(short_text), "--offload-teacher"]
    arguments += ["--steps", "2", "--sequence-length", "16", "--batch-tokens", "64", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--teacher-precision", "fp8"]) == 2
    assert "drop --teacher-precision or --offload-teacher" in capsys.readouterr().err
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["offload_teacher"] is True and document["results"]["drift"] is None
