"""lm-eval tasks that are run at every validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.recipe import Recipe
from minitron.measure.benchmarks import Benchmarks, Results
from minitron.model.loading import load_tokenizer
from minitron.report import text as report_text

Ask = Callable[[PreTrainedModel], Results]
"""The metrics of every task, for the student as it is now."""


def asker(recipe: Recipe, student: Path) -> Ask | None:
    """Who asks the recipe's tasks, in the words of the folder `student`; None where it has none.

    Raises MinitronError where there is no such task."""
    if not recipe.tasks:
        return None
    benchmarks, tokenizer = Benchmarks(recipe.tasks, limit=recipe.task_limit), load_tokenizer(student)

    def ask(model: PreTrainedModel) -> Results:
        # lm-eval seeds torch, which is the run's affair.
        with torch.random.fork_rng(devices=[]):
            return benchmarks.run(model, tokenizer, batch_size=recipe.sequences_per_pass)

    return ask


def task_metrics(point: Mapping[str, Any]) -> dict[str, float]:
    """`birds acc` -> value, of a validation; standard errors are left out."""
    return report_text.task_metrics(point.get("tasks", {}))


def figures(point: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a validation by name, but where it stood."""
    own = {name: value for name, value in point.items() if name not in ("step", "tokens", "tasks")}
    return own | task_metrics(point)
