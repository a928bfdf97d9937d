"""The result of a distillation: metrics, learning curve, drift."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.recipe import Recipe
from distill.run.range_test import RangeTest
from distill.run.trainer import Trainer
from distill.teacher.drift import Drift


@dataclass(frozen=True)
class DistillResult:
    """What a run did and what came of it; KL is KL(teacher || student) in nats, on the held-out sequences."""

    output: Path
    """The folder written."""

    recipe: Recipe
    """How it was trained; a learning rate that was to be found is there."""

    teacher_precision: str
    """How the teacher was kept."""

    steps: int
    """Optimiser steps."""

    tokens: int
    """Tokens trained on."""

    seconds: float
    """Time spent in steps, validations and checkpoints left out; of all runs where it was interrupted."""

    tokens_per_s: float
    """Tokens trained on a second of them."""

    kl_before: float
    """Before the first step."""

    kl_after: float
    """Of the weights written."""

    perplexity_before: float
    perplexity_after: float
    perplexity_teacher: float
    """The teacher's, as it was kept."""

    drift: Drift | None
    """How far the teacher was from itself in bf16; None where it was in bf16."""

    curve: list[dict[str, Any]]
    """Every validation: step, tokens, kl, perplexity, top1_agreement; `tasks` where there are some."""

    losses: list[float]
    """The training loss of every step, the streams' error left out; nan where it was skipped, as not finite."""

    selected_step: int
    """After which of the steps the weights written are."""

    stream_weight: float = 0.0
    """Of the error of the residual streams in what was minimised; 0 where they were not compared."""

    range_test: dict[str, Any] | None = None
    """How the learning rate was found: steps of a trial, and of each its rate and loss; None where it was given."""

    @property
    def selected(self) -> dict[str, Any]:
        """The validation of the weights written."""
        return next(point for point in self.curve if point["step"] == self.selected_step)

    @property
    def skipped(self) -> int:
        """Steps that were skipped."""
        return sum(math.isnan(loss) for loss in self.losses)

    def to_json(self) -> dict[str, Any]:
        """The results of the command: all fields but the inputs and the losses of single steps."""
        fields = {name: value for name, value in vars(self).items() if name not in ("output", "recipe", "losses")}
        return fields | {"skipped_steps": self.skipped, "drift": None if self.drift is None else asdict(self.drift)}


def result_of(
    trainer: Trainer, start: dict[str, Any], output: Path, teacher_precision: str, test: RangeTest | None
) -> DistillResult:
    """What a trainer that is done did; `start` is what was measured before the first step, `test` how its learning rate
    was found."""
    before, after = trainer.curve[0], trainer.selected
    return DistillResult(
        output=output,
        recipe=trainer.recipe,
        teacher_precision=teacher_precision,
        steps=trainer.step,
        tokens=trainer.tokens,
        seconds=trainer.seconds,
        tokens_per_s=trainer.tokens / trainer.seconds,
        kl_before=before["kl"],
        kl_after=after["kl"],
        perplexity_before=before["perplexity"],
        perplexity_after=after["perplexity"],
        perplexity_teacher=start["perplexity_teacher"],
        drift=None if start["drift"] is None else Drift(**start["drift"]),
        curve=trainer.curve,
        losses=trainer.losses,
        selected_step=int(after["step"]),
        stream_weight=0.0 if trainer.objective.stream is None else trainer.objective.stream.weight,
        range_test=None if test is None else test.to_json(),
    )
