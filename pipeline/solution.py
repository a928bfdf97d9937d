"""Inverse questions: the longest context, largest batch, smallest GPU or highest weight precision that fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minitron.errors import MinitronError
from pipeline.planning import Planning
from pipeline.standing import Standing

if TYPE_CHECKING:
    from minitron.memory.questions import Answer

Question = Literal["context", "batch", "gpu", "weights"]
"""What is solved for."""


@dataclass(frozen=True)
class Solution:
    """An answer, and how the model stands then."""

    answer: Answer
    standing: Standing

    def to_json(self) -> dict[str, Any]:
        """The document of the command."""
        terms = [term.to_json() for term in self.standing.terms]
        log = {fact.name: fact.value for fact in self.standing.engine_log}
        return self.answer.to_json() | {"terms": terms, "engine_log": log, "cautions": list(self.standing.cautions)}


def solve(model: Path, planning: Planning, question: Question) -> Solution:
    """The longest context, the largest batch, the smallest GPU or the highest weight precision at which the model fits.

    Raises MinitronError where there is none, and where the GPU is asked for and given."""
    from minitron.memory.gpus import GPUS
    from minitron.memory.questions import solve as solve_for
    from minitron.model.stored import read_stored_spec

    planning.require_one_format("--solve asks about the model as it is, in one format", "drop --solve")
    spec = read_stored_spec(model)
    if question == "gpu" and planning.device is None and planning.budget is None:
        budget = planning.budget_of(max(GPUS.values(), key=lambda gpu: gpu.usable))
    elif question == "gpu":
        raise MinitronError("--solve gpu finds the GPU itself; leave --gpu, --gpu-memory and --budget out.")
    else:
        budget = planning.budget_of_device()
    answer = solve_for(question, spec, planning.workload(spec), budget, planning.budget_of)
    return Solution(answer, Standing(planning, spec, answer.budget, answer.workload))
