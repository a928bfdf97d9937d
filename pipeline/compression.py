"""The request to compress a model, and the names of the files in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from distill.recipe import Recipe
from distill.run.distillation import Precision
from importance.score.options import ScoringOptions
from minitron.errors import MinitronError, require_known
from minitron.locks import resolved
from minitron.measure.options import EvaluationOptions
from pipeline.cutting import Cutting
from pipeline.planning import Planning
from pipeline.searching import Searching

if TYPE_CHECKING:
    from minitron.quantise.wanted import Wanted

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

    form: str | None = None
    """A format in which the compressed model is trained and written, and for which it is planned; None is 16 bits.
    Parts that `planning` keeps in another one are trained and written in that."""

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
        if self.searching.sizes == "per-layer" and self.planning.asked:
            flag = next(iter(self.planning.asked))
            raise MinitronError(f"--sizes per-layer keeps to a budget of bytes alone; drop {flag}.")
        if self.form is not None:
            self._plan_for_format()
        if self.planning.formats and self.recipe.compile:
            raise MinitronError("a student in a format of fewer bits is not compiled; drop --compile or --formats.")
        texts = {resolved(path) for path in (self.calibration_text, self.data)}
        if self.heldout is not None and resolved(self.heldout) in texts:
            raise MinitronError(
                f"{self.heldout} is both a training and a held-out text; give another file for --text, or drop it."
            )

    def _plan_for_format(self) -> None:
        """Let the plan count what will be written."""
        if self.planning.formats:
            raise MinitronError("--format fixes what --formats lets the search choose; drop one.")
        if self.planning.weights not in (None, self.form):
            raise MinitronError(
                f"--format {self.form} writes the model, and --weights {self.planning.weights} plans for another; "
                "drop --weights."
            )
        if self.recipe.compile:
            raise MinitronError("a student in a format of fewer bits is not compiled; drop --compile or --format.")
        object.__setattr__(self, "planning", replace(self.planning, weights=self.form))
        _ = self.wanted

    @property
    def wanted(self) -> Wanted | None:
        """The formats of the compressed model; raises MinitronError for one that is not written."""
        from minitron.quantise.wanted import Wanted

        return None if self.form is None else Wanted(self.form, self.planning.keep)

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
            **({} if self.form is None else {"format": self.form}),
        }
