"""The request to compress a model, and the names of the files in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from distill.recipe import Recipe
from distill.run.distillation import Precision
from importance.score.options import ScoringOptions
from minitron.errors import MinitronError, require_known
from minitron.locks import resolved
from minitron.measure.options import EvaluationOptions
from pipeline.cutting import Cutting
from pipeline.planning import Planning
from pipeline.searching import Searching

RUN: Final = "run.json"
DEQUANTISED: Final = "dequantised"
SCORES: Final = "scores.safetensors"
PLAN: Final = "plan.json"
PRUNED: Final = "pruned"
DISTILLED: Final = "distilled"
EVALUATION: Final = "evaluation.json"
TEXT: Final = "text"
TRIALS: Final = "trials.jsonl"
SEARCH: Final = "search.json"
REPORT: Final = "report"


@dataclass(frozen=True)
class Compression:
    """A model, what it must fit, the texts, and how each step is done."""

    model: Path
    """The checkpoint to compress, and the teacher of what is left of it."""

    output: Path
    """The run folder."""

    data: Path
    """Text for distillation."""

    planning: Planning
    """The GPU or budget, the workload, and the architectures to search."""

    recipe: Recipe
    """How to distil."""

    calibration: Path | None = None
    """Calibration text for scoring; None uses the text for distillation."""

    heldout: Path | None = None
    """Held-out text for the evaluation; None holds out the end of the text for distillation."""

    searching: Searching = field(default_factory=Searching)
    """How candidates are measured before one is chosen."""

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    """How the model is scored."""

    cutting: Cutting = field(default_factory=Cutting)
    """How the chosen architecture is cut."""

    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    """How teacher, pruned and distilled models are measured at the end."""

    teacher_precision: Precision = "bf16"
    """How the teacher's linear weights are kept."""

    dequantise: bool = False
    """Whether the model is a quantised one, to be turned into bf16 in the run folder first."""

    device: str | None = None
    """Where models run, as torch spells it; None is the first GPU, or else the CPU."""

    command: str = ""
    """The command line, for the report."""

    def __post_init__(self) -> None:
        require_known(self, {"teacher_precision": get_args(Precision)})
        if self.scoring.offload and self.searching.measures:
            raise MinitronError(
                "--offload is for models larger than memory, but candidates are measured in memory; "
                "add --evaluate 0 or drop --offload."
            )
        texts = {resolved(path) for path in (self.calibration_text, self.data)}
        if self.heldout is not None and resolved(self.heldout) in texts:
            raise MinitronError(
                f"{self.heldout} is both a training and a held-out text; give another file for --text, or drop it."
            )

    @property
    def calibration_text(self) -> Path:
        """Text for scores."""
        return self.calibration or self.data

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that was asked for beside models and texts, as JSON: what a run that goes on must agree with."""
        return {
            "planning": self.planning.settings,
            "searching": self.searching.settings,
            "scoring": self.scoring.to_json(),
            "cutting": self.cutting.settings,
            "training": self.recipe.to_json(),
            "teacher_precision": self.teacher_precision,
            **({"dequantise": True} if self.dequantise else {}),
        }
