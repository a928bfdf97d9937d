"""The options by which candidates are measured before one is chosen, and the search that they ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import spread_options
from cli.options import count_option
from minitron.errors import MinitronError
from pipeline.stages import Stages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from cli.cutting import Cutting
    from cli.planning import Planning
    from importance.search.sieves import Planner
    from importance.search.trial import Trials
    from importance.search.verdicts import Sieved
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec
    from minitron.progress import Progress

TASK = "task:"
"""Before the name of an lm-eval task, or the path of its YAML file, in --objective."""


@dataclasses.dataclass(frozen=True)
class Searching:
    """What was typed."""

    stages: Annotated[
        Stages,
        typer.Option(
            "--stages", help="Cut layers and widths together, or layers first and widths by scores of what is left."
        ),
    ] = Stages.TOGETHER
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="What candidates are measured by: kl (to the parent), perplexity, or task:NAME of lm-eval.",
            metavar="kl|perplexity|task:NAME",
        ),
    ] = "kl"
    evaluate: Annotated[
        int,
        typer.Option(
            "--evaluate",
            min=0,
            help="Candidates of the damage model to cut and measure; 0 ranks by importance scores alone.",
        ),
    ] = 24
    combinations: Annotated[
        int, typer.Option("--combinations", min=4, help="Random architectures to fit the damage model to.")
    ] = 32
    judge: Annotated[
        Path | None,
        typer.Option(
            "--judge",
            help="Text to measure candidates on; unless given, calibration sequences that no score ever sees.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    judge_samples: Annotated[
        int, typer.Option("--judge-samples", min=1, help="Sequences to measure candidates on, at most.")
    ] = 16
    finalists: Annotated[
        int,
        typer.Option(
            "--finalists",
            min=0,
            help="Near-ties among the measured to distil for a short while before one is chosen; 0 or 1 for none.",
        ),
    ] = 3
    finalist_tokens: Annotated[
        int | None,
        typer.Option(
            "--finalist-tokens",
            parser=count_option,
            help="Tokens to distil each finalist on; a tenth of --tokens unless given.",
            metavar="TOKENS",
            show_default=False,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.objective not in ("kl", "perplexity") and not self.objective.startswith(TASK):
            raise MinitronError(f"--objective {self.objective!r} is none; give kl, perplexity or task:NAME.")
        if self.objective == TASK:
            raise MinitronError("--objective task: names no task; write it like task:piqa or task:mine.yaml.")

    @property
    def measures(self) -> bool:
        """Whether candidates are measured at all."""
        return self.evaluate > 0

    @property
    def held_back(self) -> int:
        """Sequences of the calibration text that judge and so must not calibrate."""
        return self.judge_samples if self.measures and self.judge is None else 0

    @property
    def settings(self) -> dict[str, Any]:
        """What was typed, as JSON."""
        return {name: str(value) if isinstance(value, Path | Stages) else value for name, value in vars(self).items()}


def takes_searching(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `searching` spread out into the options of Searching, as typer reads them."""
    return spread_options(function, "searching", Searching)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A search by measurement, asked for."""

    searching: Searching
    planning: Planning
    cutting: Cutting

    scoring: dict[str, Any]
    """The keyword arguments that the calibration was run with (cli.scoring.Scoring.arguments)."""

    seed: int
    """Of the random architectures."""

    def run(
        self,
        model: Path,
        calibration: Path,
        scores: Scores,
        spec: ModelSpec,
        plan: Planner,
        *,
        store: Path | None,
        device: str | None,
        progress: Progress,
    ) -> Sieved:
        """Measure candidates of `model`, cut by their `plan`; `calibration` is the text that `scores` were made on.

        With a `store` a search that was stopped goes on where it was.  Raises MinitronError where nothing fits, or the
        text to judge by was calibrated on."""
        from importance.search.sieves import SieveOptions, sieve
        from minitron.model.loading import DTYPES, find_device, load_model

        dtype = DTYPES[self.scoring["dtype"]]
        parent = load_model(model, dtype=dtype, device=find_device(device))
        judge = self._judge(model, calibration, parent, spec, store)
        searching, planning = self.searching, self.planning
        options = SieveOptions(
            combinations=searching.combinations, finalists=searching.evaluate, top=planning.top, seed=self.seed
        )
        counted, scores = self.cutting.counted(spec, scores)
        lattice = planning.build_lattice(counted, scores)
        return sieve(
            judge,
            lattice,
            planning.workload(counted),
            planning.budget_of_device(),
            scores,
            plan=plan,
            options=options,
            progress=progress,
        )

    def _judge(
        self, model: Path, calibration: Path, parent: PreTrainedModel, spec: ModelSpec, store: Path | None
    ) -> Trials:
        from importance.search.trial import Trials

        objective: Any = self.searching.objective
        if objective.startswith(TASK):
            objective = (objective, self._task(model, objective.removeprefix(TASK)))
        blocks = self._blocks(model, calibration)
        return Trials(parent, spec, blocks, batch_size=self.scoring["batch_size"], objective=objective, store=store)

    def _blocks(self, model: Path, calibration: Path) -> NDArray[np.int64]:
        """The judging sequences; raises MinitronError where they overlap with those that calibrated."""
        from importance.score.blocks import require_apart
        from importance.score.calibrate import calibration_blocks
        from minitron.measure.text import token_blocks
        from minitron.model.loading import load_tokenizer

        length, samples = self.scoring["sequence_length"], self.scoring["samples"]
        seen, judging = calibration_blocks(
            model, calibration, samples=samples, sequence_length=length, held_back=self.searching.held_back
        )
        if self.searching.judge is None:
            return judging
        blocks = token_blocks(
            load_tokenizer(model), self.searching.judge, sequence_length=length, samples=self.searching.judge_samples
        )
        require_apart(blocks, seen)
        return blocks

    def _task(self, model: Path, name: str) -> Callable[[PreTrainedModel], float]:
        """What a model lacks of a full score: 1 less the mean of the task's accuracies (acc_norm before acc), or of its
        first metric."""
        from minitron.measure.benchmarks import Benchmarks
        from minitron.model.loading import load_tokenizer

        benchmarks, tokenizer = Benchmarks([name]), load_tokenizer(model)
        batch_size = self.scoring["batch_size"]

        def loss(candidate: PreTrainedModel) -> float:
            found = benchmarks.run(candidate, tokenizer, batch_size=batch_size)
            return 1.0 - sum(_score(metrics) for metrics in found.values()) / len(found)

        return loss


def _score(metrics: dict[str, float]) -> float:
    for name in ("acc_norm", "acc", "exact_match"):
        if name in metrics:
            return metrics[name]
    raise MinitronError(
        f"the task measures {', '.join(metrics)} and neither accuracy nor exact match; choose another for --objective."
    )
