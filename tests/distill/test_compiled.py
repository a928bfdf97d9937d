"""Training with layers and loss as torch.compile makes them: the same numbers but for rounding."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forks
import pytest
import tiny_models
import torch
from torch import Tensor

from cli.app import run
from distill.losses import slopes
from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import parse_loss
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.compiled import Compiled, require_compiler
from distill.run.distillation import Distillation
from distill.run.loop import Stopped
from distill.run.train import distill
from distill.run.trainer import Trainer
from minitron.errors import MinitronError
from minitron.measure.quality import hidden_states
from minitron.model.loading import load_model

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")

CPU = torch.device("cpu")
TRACED = "aot_eager_decomp_partition"
"""What torch.compile makes, but for the C++: all that depends on our code in a tenth of the time."""

BACKENDS = [TRACED, pytest.param("inductor", marks=pytest.mark.slow)]

RECIPE = Recipe(
    steps=4, sequence_length=16, batch_tokens=96, micro_batch=4, learning_rate=0.01, warmup_steps=0, precision="fp32",
    validate_every=2, validation_sequences=5, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return tiny_models.save_hybrid(tmp_path / "student", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4)


@pytest.fixture(autouse=True)
def from_nothing() -> Iterator[None]:
    slopes._compiled.cache_clear()
    yield
    slopes._compiled.cache_clear()


@pytest.mark.parametrize(
    ("name", "temperature", "backend"),
    [
        ("forward_kl", 1.0, "inductor"),
        pytest.param("jsd:0.3", 2.0, "inductor", marks=pytest.mark.slow),
        *((name, 2.0, TRACED) for name in ("forward_kl", "reverse_kl", "skewed_kl", "skewed_reverse_kl", "jsd:0.3")),
    ],
)
def test_a_compiled_loss_is_the_loss(
    name: str, temperature: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, head, teacher, other = normal(20, 6), normal(50, 6), normal(20, 9), normal(50, 9)
    student.requires_grad_(True), head.requires_grad_(True)
    found = []
    for compiled in (False, True):
        loss = chunked_loss(
            parse_loss(name),
            student,
            head,
            teacher,
            other,
            options=LossOptions(temperature=temperature, chunk=8, compiled=compiled),
        )
        found.append([loss, *torch.autograd.grad(loss, (student, head))])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)


def test_layers_are_compiled_where_it_is_switched_on(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda plain, dynamic: lambda *given, **named: asked.append(1) or plain(*given, **named)
    )
    model = load_model(tiny_llama, dtype=torch.float32, device=CPU)
    compiled, ids = Compiled([model]), torch.arange(8)[None]
    with torch.no_grad():
        hidden_states(model, ids)
        assert asked == []
        with compiled.on():
            hidden_states(model, ids)
        assert len(asked) == 4
        hidden_states(model, ids)
        assert len(asked) == 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_learn_the_same(
    backend: str, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    # A Mamba layer's reference implementation takes a minute to compile: it was tried by hand.
    # Attention is compiled below; passes of one size are compiled once.
    teacher = tiny_models.save_hybrid(tmp_path / "teacher", pattern="E-")
    student = tiny_models.save_hybrid(tmp_path / "student", pattern="E-", seed=1, n_routed_experts=4)
    recipe = replace(RECIPE, steps=2, micro_batch=6)
    plain = distill(Distillation(student, teacher, short_text, tmp_path / "plain"), recipe)
    found = distill(Distillation(student, teacher, short_text, tmp_path / "out"), replace(recipe, compile=True))
    # The teacher is in bf16, whose rounding between fused operations is left out.
    assert found.losses[0] == pytest.approx(plain.losses[0], rel=1e-3)
    # The first step of AdamW has the sign of a gradient alone, and rounding may turn it.
    assert found.losses[1] == pytest.approx(plain.losses[1], rel=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_stopped_goes_on_bit_for_bit(
    backend: str, tiny_llama: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    student = tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)
    asked = Distillation(student, tiny_llama, short_text, tmp_path / "out", teacher_precision="fp8")
    recipe = replace(RECIPE, compile=True)
    found = distill(asked, recipe)
    plain = distill(replace(asked, output=tmp_path / "plain"), RECIPE)
    assert found.losses[0] == pytest.approx(plain.losses[0], rel=1e-3)
    assert found.kl_after == pytest.approx(plain.kl_after, rel=1e-2)
    step = Trainer.train_step

    def stops(self: Trainer) -> dict[str, Any]:
        if self.step == 3:
            raise Stopped
        return step(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "train_step", stops)
        distill(replace(asked, output=tmp_path / "again"), recipe)
    again = distill(replace(asked, output=tmp_path / "again"), recipe)
    assert again.losses == found.losses and again.curve == found.curve


def run_process(rank: int, folder: Path, asked: Distillation, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend=TRACED)  # type: ignore[assignment]
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    found = distill(asked, recipe, processes=Processes(rank, 2))
    if rank == 0:
        (folder / "kl").write_text(str(found.kl_after))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compile_too(tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    student = tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)
    recipe = replace(RECIPE, activation_checkpointing=True, steps=2)
    asked = Distillation(student, tiny_llama, short_text, tmp_path / "many")
    forks.two(run_process, tmp_path, asked, replace(recipe, compile=True))
    alone = distill(replace(asked, output=tmp_path / "alone"), recipe)
    assert float((tmp_path / "kl").read_text()) == pytest.approx(alone.kl_after, rel=1e-2)


def test_without_a_compiler_one_is_told(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("distill.run.compiled.shutil.which", lambda name: None)
    arguments = ["distill", str(student), "--teacher", str(tiny_hybrid), "--data", str(short_text), "--steps", "1"]
    assert run([*arguments, "-o", str(tmp_path / "out"), "--compile"]) == 2
    assert "--compile needs a C++ compiler" in capsys.readouterr().err
    with pytest.raises(MinitronError, match="drop --compile"):
        require_compiler(CPU)
    require_compiler(torch.device("cuda"))
    assert slopes.Settings(parse_loss("forward_kl"), 3).compiled is False
