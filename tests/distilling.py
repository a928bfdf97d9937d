"""A short run of distillation, and ways to stop one, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch
from torch import Tensor

from distill.recipe import Recipe
from distill.run.objective import Objective, Pass
from distill.run.result import DistillResult
from distill.teacher.streamed import StreamedTeacher
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.progress import Advance

CPU = torch.device("cpu")

RECIPE = Recipe(
    steps=8, sequence_length=16, batch_tokens=96, micro_batch=4, learning_rate=0.01, warmup_steps=2, precision="fp32",
    validate_every=4, validation_sequences=6, checkpoint_every=4,
)  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def require_equal(one: DistillResult, other: DistillResult) -> None:
    """Losses, curve and weights are the same bit for bit."""
    assert one.losses == other.losses and one.curve == other.curve
    ours, theirs = weights(one.output), weights(other.output)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


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


def gradients(models: tuple[Path, Path], *, streamed: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of a student on its teacher's logits, as the objective has them, and as the plain formula on
    transformers' own logits gives them; a streamed teacher is in bf16, and so is its reference."""
    student = load_model(models[0], dtype=torch.float32, device=CPU).requires_grad_(True)
    teacher = load_model(models[1], dtype=torch.bfloat16 if streamed else torch.float32, device=CPU)
    blocks = np.random.default_rng(0).integers(3, tiny_models.VOCAB_SIZE, (3, 16))
    ids = torch.from_numpy(blocks)
    reference: Any = teacher
    if streamed:
        reference = StreamedTeacher(models[1], CPU)
        reference.ask(blocks, 3)
    recipe = Recipe(steps=1, sequence_length=16, precision="fp32")
    Objective(student, reference, recipe).loss(Pass(ids, None, ((0, 0), (0, 1), (0, 2)), ids.numel()), 0).backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    with torch.no_grad():
        log_p = teacher(ids).logits.float().log_softmax(-1)
    log_q = student(ids).logits.log_softmax(-1)
    ((log_p.exp() * (log_p - log_q)).sum() / ids.numel()).backward()
    return found, {name: parameter.grad for name, parameter in student.named_parameters()}
