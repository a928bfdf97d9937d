"""The range test: which learning rate a student bears, found by short runs from the same start on the same text.

Each trial is a run of a few steps with a warm-up and a cosine of its own, judged by its loss in the last of them, which
is measured before the step.  All read the same sequences, so that what differs between trials is the rate.  Rates a
factor of COARSE apart are tried until the best has a worse one on either side, then those a factor of FINE from it; the
rate taken is the vertex of the parabola through the best and those beside it, over the logarithm of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from distill.recipe import AUTO, Recipe
from distill.run.trainer import Trainer
from minitron.errors import MinitronError
from minitron.progress import Note, Progress

FIRST: Final = 4e-4
"""The first rate that is tried."""

COARSE: Final = 4.0
FINE: Final = 2.0
"""Powers of two: rates that were reached on two ways are the same number."""

LOWEST: Final = 1e-6
HIGHEST: Final = 0.1

MOST_TRIALS: Final = 8

SHARE: Final = 0.02
FEWEST_STEPS: Final = 8
MOST_STEPS: Final = 100
"""Steps of a trial: a share of the run's, within these bounds and no more than the run has."""


@dataclass(frozen=True)
class Trial:
    """A short run."""

    learning_rate: float
    loss: float | None
    """Of its last steps; None where a step was not finite."""

    @property
    def key(self) -> tuple[float, float]:
        """The better, the less: of equals the lower rate."""
        return math.inf if self.loss is None else self.loss, self.learning_rate


@dataclass(frozen=True)
class RangeTest:
    """The trials of one run, and what they tell."""

    steps: int
    """Of each."""

    trials: tuple[Trial, ...]

    @property
    def next_rate(self) -> float | None:
        """What is tried next; None where enough was."""
        known = {trial.learning_rate for trial in self.trials}
        if len(known) >= MOST_TRIALS:
            return None
        coarse = {rate for rate in known if math.log2(rate / FIRST) % math.log2(COARSE) == 0}
        if not coarse:
            return FIRST
        best = min(trial.key for trial in self.trials if trial.learning_rate in coarse)[1]
        near = (best * COARSE, best / COARSE, best * FINE, best / FINE)
        return next((rate for rate in near if rate not in known and LOWEST <= rate <= HIGHEST), None)

    @property
    def found(self) -> float:
        """The rate to take, to two digits; raises MinitronError where no trial was finite."""
        best = min(trial.key for trial in self.trials)
        if math.isinf(best[0]):
            raise MinitronError(
                "the loss was not finite at any learning rate of the range test; give a --learning-rate and "
                "--dtype fp32, or look whether the student is damaged."
            )
        losses = {trial.learning_rate: trial.loss for trial in self.trials}
        below, above = losses.get(best[1] / FINE), losses.get(best[1] * FINE)
        shift = 0.0
        if below is not None and above is not None and (bend := below - 2 * best[0] + above) > 0:
            shift = (below - above) / (2 * bend)
        return float(f"{best[1] * FINE**shift:.2g}")

    def told(self, recipe: Recipe) -> str:
        """What was tried, as one sentence; `recipe` is the run's."""
        tokens = self.steps * recipe.batch_tokens * len(self.trials)
        ordered = sorted(self.trials, key=lambda trial: trial.learning_rate)
        losses = ", ".join(
            f"{trial.learning_rate:g}: {'not finite' if trial.loss is None else format(trial.loss, '.4f')}"
            for trial in ordered
        )
        return (
            f"Learning rate {self.found:g}, by a range test of {len(self.trials)} trials of {self.steps} steps "
            f"({tokens:,} tokens, {tokens / recipe.total_tokens:.1%} of the run's); loss by rate: {losses}."
        )

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"steps": self.steps, "trials": [vars(trial) for trial in self.trials]}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> RangeTest:
        """What `to_json` told."""
        return cls(told["steps"], tuple(Trial(**trial) for trial in told["trials"]))


def trial_steps(recipe: Recipe) -> int:
    """Steps of one trial of a run by `recipe`."""
    return min(recipe.total_steps, max(FEWEST_STEPS, min(MOST_STEPS, int(SHARE * recipe.total_steps))))


def find_learning_rate(trainer: Trainer, progress: Progress, note: Note) -> RangeTest | None:
    """Give the trainer's recipe the learning rate that suits it, where it is to be found; None where it is given.

    The trainer stands before its first step with the student's own weights, and does so afterwards.  Each trial is kept
    in the working folder when it is done: a run that was stopped goes on with the next one.  Beside the training it
    takes the memory of the weights once, on the CPU."""
    recipe, work = trainer.recipe, trainer.work
    if recipe.learning_rate != AUTO:
        return None
    told = work.read_range_test()
    test = RangeTest(trial_steps(recipe), ()) if told is None else RangeTest.of(told)
    if test.next_rate is not None:
        test = _tried(trainer, test, progress)
    trainer.begin_again(replace(recipe, learning_rate=test.found))
    note(test.told(recipe))
    return test


def _tried(trainer: Trainer, test: RangeTest, progress: Progress) -> RangeTest:
    """The test with all of its trials."""
    recipe, start = trainer.recipe, trainer.own_weights()
    with progress("finding the learning rate", MOST_TRIALS * test.steps * recipe.batch_tokens, "tokens") as advance:
        while (rate := test.next_rate) is not None:
            # Chance in a trial is the same whatever came before it, and that of the run as well.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                loss = _trial(trainer, _short(recipe, rate, test.steps))
            trainer.put_weights(start)
            test = replace(test, trials=(*test.trials, Trial(rate, loss)))
            if trainer.processes.is_first:
                trainer.work.write_range_test(test.to_json())
            advance(test.steps * recipe.batch_tokens, f"{rate:g}: {'not finite' if loss is None else f'{loss:.4f}'}")
    return test


def _short(recipe: Recipe, rate: float, steps: int) -> Recipe:
    """The recipe of a trial."""
    warmup = max(1, steps // 4) if steps > 1 else 0
    return replace(recipe, tokens=None, steps=steps, learning_rate=rate, warmup_steps=warmup, most_skipped=steps)


def _trial(trainer: Trainer, recipe: Recipe) -> float | None:
    """The mean loss of the last quarter of the steps of a run by `recipe`; None where one was not finite."""
    trainer.begin_again(recipe)
    for _ in range(recipe.total_steps):
        if "loss" not in trainer.train_step():
            return None
    last = trainer.losses[-max(1, recipe.total_steps // 4) :]
    return sum(last) / len(last)
