"""The request to compress a model, and the names of the files in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
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
CONFIG: Final = "run.toml"
DEQUANTISED: Final = "dequantised"
SCORES: Final = "scores.safetensors"
PLAN: Final = "plan.json"
PRUNED: Final = "pruned"
DISTILLED: Final = "distilled"
GGUF: Final = "distilled.gguf"
EVALUATION: Final = "evaluation.json"
TEXT: Final = "text"
TRIALS: Final = "trials.jsonl"
SEARCH: Final = "search.json"
REPORT: Final = "report"
JUDGED: Final = "judged"


@dataclass(frozen=True)
class Shared:
    """What the members of a family share: models of several budgets from one scoring."""

    trials: Path
    """The file in which all of them keep their measurements."""

    plannings: tuple[Planning, ...]
    """Those of all members, in order: random combinations are drawn for each, and measured once."""


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

    budgets: Sequence[int] = ()
    """Total memory in bytes; of several each gives a model of its own, and all come from one scoring."""

    params: Sequence[int] = ()
    """The most parameters; of several each gives a model of its own."""

    scores: Path | None = None
    """Scores of the model that were written before; None scores it."""

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

    config: str = ""
    """The settings as a file that the run folder keeps, for `compress --config`; empty keeps none."""

    shared: Shared | None = None
    """Where it is one of a family."""

    steps_of: float | None = None
    """The share of the parameters that one cut takes at most: a larger cut is made in several, with distillation
    between (pipeline.several_cuts).  None is one cut."""

    teacher: Path | None = None
    """The whole model, where `model` is what an earlier cut left of it; None is `model`."""

    def __post_init__(self) -> None:
        self._plan_for_one()
        require_known(self, {"teacher_precision": get_args(Precision)})
        if self.scoring.offload and self.searching.measures:
            raise MinitronError(
                "--offload is for models larger than memory, but candidates are measured in memory; "
                "add --evaluate 0 or drop --offload."
            )
        if self.steps_of is not None:
            self._require_share(self.steps_of)
        if self.form is not None:
            self._plan_for_format()
        if self.searching.sizes == "per-layer" and self.planning.engine == "llama.cpp":
            raise MinitronError(
                "--sizes per-layer makes a model that llama.cpp does not read; drop it, or choose another --engine."
            )
        if self.exports and self.planning.search_kv:
            raise MinitronError(
                "--search-kv measures what keys and values lose, and of llama.cpp's types that is not known; give --kv "
                "instead."
            )
        if self.planning.formats and self.recipe.compile and not self.exports:
            raise MinitronError("a student in a format of fewer bits is not compiled; drop --compile or --formats.")
        texts = {resolved(path) for path in (self.calibration_text, self.data)}
        if self.heldout is not None and resolved(self.heldout) in texts:
            raise MinitronError(
                f"{self.heldout} is both a training and a held-out text; give another file for --text, or drop it."
            )

    def _require_share(self, share: float) -> None:
        if not 0 < share < 1:
            raise MinitronError(f"--steps-of {share:g} is no share; give one between 0 and 1, such as 0.3.")
        if self.budgets or self.params:
            raise MinitronError("--steps-of goes one way to one model; give one --budget or --params.")

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

    def _plan_for_one(self) -> None:
        """Let the plan keep the one budget that was given; several are those of a family."""
        if len(self.budgets) > 1 and len(self.params) > 1:
            raise MinitronError("several --budget and several --params are given; give several of one of them.")
        for flag, values in (("--budget", self.budgets), ("--params", self.params)):
            if len(set(values)) < len(values):
                raise MinitronError(f"{flag} is given twice with the same number; give each once.")
        asked = [*self.planning.asked, *(["--params"] if self.params else [])]
        if asked and self.searching.sizes == "per-layer":
            raise MinitronError(f"--sizes per-layer keeps a budget of bytes alone; drop it, or {asked[0]}.")
        if len(self.budgets) == 1:
            object.__setattr__(self, "planning", replace(self.planning, budget=self.budgets[0]))
            object.__setattr__(self, "budgets", ())
        if len(self.params) == 1:
            object.__setattr__(self, "planning", replace(self.planning, params=self.params[0]))
            object.__setattr__(self, "params", ())

    @property
    def plannings(self) -> dict[str, Planning]:
        """Name of a member of the family -> its plan; empty where it is one model."""
        members = {f"budget-{value}": replace(self.planning, budget=value) for value in self.budgets}
        return members | {f"params-{value}": replace(self.planning, params=value) for value in self.params}

    @property
    def whole(self) -> Path:
        """The teacher, against which everything is measured at the end."""
        return self.teacher or self.model

    @property
    def title(self) -> str:
        """What the report calls the model that is cut: of what an earlier cut left that cut's folder too."""
        return str(self.model) if self.whole == self.model else f"{self.whole.name} after {self.model.parent.name}"

    @property
    def trials(self) -> Path:
        """The file in which measurements are kept."""
        return self.output / TRIALS if self.shared is None else self.shared.trials

    @property
    def exports(self) -> bool:
        """Whether the compressed model is written as a GGUF file too, in types of ggml that the search chooses."""
        return bool(self.planning.formats) and self.planning.engine == "llama.cpp"

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
            **({} if self.steps_of is None else {"steps_of": self.steps_of}),
            **self._of_family,
        }

    @property
    def _of_family(self) -> dict[str, Any]:
        """What is asked for of the others of a family."""
        numbers: dict[str, Any] = {"budgets": list(self.budgets), "params": list(self.params)}
        if self.shared is not None:
            numbers["family"] = [planning.settings for planning in self.shared.plannings]
        return {name: value for name, value in numbers.items() if value}
