"""The request of a search by measurement: how candidates are ranked, measured and chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from minitron.errors import MinitronError, require_known, require_least

TASK: Final = "task:"
"""Before the name of an lm-eval task, or the path of its YAML file, in an objective."""

JUDGE: Final = "judge:"
"""Before a judge, a folder or an endpoint, in an objective: finalists are ranked by their answers to `prompts`."""

Stages = Literal["together", "depth,width"]
"""How a model is cut: layers and widths together, or layers first and widths by scores of what is left."""


Sizes = Literal["uniform", "per-layer"]
"""Whether all layers of a kind have one size, or each its own."""


@dataclass(frozen=True)
class Searching:
    """How candidates are measured."""

    sizes: Sizes = "uniform"
    """Whether all layers of a kind have one size, or each its own, chosen by what each loses alone."""

    stages: Stages = "together"
    """Whether layers and widths are cut together or one after the other."""

    objective: str = "kl"
    """Objective to measure candidates by: kl (divergence from the parent), perplexity, or task:NAME of lm-eval;
    judge:JUDGE measures them by kl and chooses among the finalists, once they are distilled, by what they answer."""

    evaluate: int = 24
    """Number of the damage model's best candidates to cut and measure; 0 ranks by importance scores only."""

    combinations: int = 32
    """Random architectures to fit the damage model to."""

    trial_text: Path | None = None
    """Text to measure candidates on; None uses calibration sequences held out from scoring."""

    trial_samples: int = 16
    """Sequences to measure candidates on, at most."""

    finalists: int = 3
    """Number of candidates with nearly equal loss to distil briefly before one is chosen; 0 or 1 for none."""

    finalist_tokens: int | None = None
    """Tokens to distil each finalist on; None is a tenth of the recipe's."""

    prompts: Path | None = None
    """Prompts that finalists, and the compressed model at the end, answer before a judge."""

    answer_tokens: int = 512
    """Tokens of such an answer, at most."""

    def __post_init__(self) -> None:
        require_known(self, {"stages": get_args(Stages), "sizes": get_args(Sizes)})
        require_least(
            self, {"evaluate": 0, "combinations": 4, "trial_samples": 1, "finalists": 0, "finalist_tokens": 1}
        )
        require_least(self, {"answer_tokens": 1})
        if self.objective not in ("kl", "perplexity") and not self.objective.startswith((TASK, JUDGE)):
            raise MinitronError(
                f"--objective {self.objective!r} is unknown; give kl, perplexity, task:NAME or judge:JUDGE."
            )
        if (self.judge is None) != (self.prompts is None):
            raise MinitronError("--objective judge:JUDGE and --prompts FILE belong together; give both.")
        if self.judge is not None and (not self.judge or not self.measures or self.finalists < 2):
            raise MinitronError(
                "--objective judge:JUDGE chooses among finalists; name a judge, and give --finalists 2 or more."
            )
        if self.sizes == "per-layer" and not self.measures:
            raise MinitronError("--sizes per-layer measures what each layer loses; drop --evaluate 0.")
        if self.sizes == "per-layer" and self.stages != "together":
            raise MinitronError(f"--sizes per-layer cuts layers and widths together; drop --stages {self.stages}.")
        if self.objective == TASK:
            raise MinitronError("--objective task: names no task; write it like task:piqa or task:mine.yaml.")

    @property
    def judge(self) -> str | None:
        """The judge of finalists; None where they are ranked by KL."""
        return self.objective.removeprefix(JUDGE) if self.objective.startswith(JUDGE) else None

    @property
    def trial_objective(self) -> str:
        """What candidates are measured by before any is distilled."""
        return self.objective if self.judge is None else "kl"

    @property
    def measures(self) -> bool:
        """Whether candidates are measured at all."""
        return self.evaluate > 0

    @property
    def held_back(self) -> int:
        """Sequences of the calibration text held out from scoring, to measure candidates on."""
        return self.trial_samples if self.measures and self.trial_text is None else 0

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as JSON."""
        paths = {"trial_text": self.trial_text} | ({} if self.prompts is None else {"prompts": self.prompts})
        found = {name: None if path is None else str(path) for name, path in paths.items()}
        # Older runs know nothing of a judge.
        left_out = ("prompts", *(() if self.judge else ("answer_tokens",)))
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out} | found
