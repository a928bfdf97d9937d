"""A short run of distillation, and ways to stop one, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.recipe import Recipe
from distill.run.result import DistillResult
from minitron.model.checkpoint import Checkpoint
from minitron.progress import Advance

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
