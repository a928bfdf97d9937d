"""The search by measurement: candidates are cut in memory and run on a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from importance.score.options import ScoringOptions
from minitron.errors import MinitronError
from pipeline.cutting import Cutting
from pipeline.planning import Planning
from pipeline.searching import TASK, Searching

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from importance.search.sieves import Planner
    from importance.search.trial import Trials
    from importance.search.verdicts import Sieved
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec
    from minitron.progress import Progress


ROUNDED_BY: Final = 4096
"""Tokens of the calibration text by which candidates are rounded."""


@dataclass(frozen=True)
class MeasuredSearch:
    """A search by measurement, asked for."""

    searching: Searching
    planning: Planning
    cutting: Cutting

    scoring: ScoringOptions
    """Those that the calibration was run with."""

    seed: int
    """Of the random architectures."""

    family: tuple[Planning, ...] = ()
    """The plans of all models of a family, this one's among them; empty for one model."""

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
        text to measure on was calibrated on."""
        from importance.search.sieves import SieveOptions, sieve

        trials = self.trials(model, calibration, scores, spec, store=store, device=device)
        searching, planning = self.searching, self.planning
        options = SieveOptions(
            combinations=searching.combinations, finalists=searching.evaluate, top=planning.top, seed=self.seed
        )
        counted, scores = self.cutting.counted(spec, scores)
        lattice = planning.build_lattice(counted, scores)
        return sieve(
            trials,
            lattice,
            planning.workload(counted),
            planning.budget_for(counted),
            scores,
            plan=plan,
            options=options,
            family=[member.budget_for(counted) for member in self.family],
            progress=progress,
        )

    def trials(
        self,
        model: Path,
        calibration: Path,
        scores: Scores,
        spec: ModelSpec,
        *,
        store: Path | None,
        device: str | None,
    ) -> Trials:
        """What candidates of `model` are measured by.  Raises MinitronError where the text to measure on was calibrated
        on."""
        from importance.search.trial import Trials
        from minitron.model.loading import DTYPES, find_device, load_model

        parent = load_model(model, dtype=DTYPES[self.scoring.dtype], device=find_device(device))
        objective: Any = self.searching.trial_objective
        if objective.startswith(TASK):
            objective = (objective, self._task(model, objective.removeprefix(TASK)))
        seen, blocks = self._blocks(model, calibration, scores)
        few = seen[: max(1, ROUNDED_BY // seen.shape[1])] if self.planning.formats else None
        return Trials(
            *(parent, spec, blocks),
            batch_size=self.scoring.batch_size,
            objective=objective,
            store=store,
            calibration=few,
        )

    def _blocks(self, model: Path, calibration: Path, scores: Scores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(sequences that calibrated, those to measure on); raises MinitronError where they overlap."""
        from importance.score.blocks import require_apart, unseen
        from importance.score.calibrate import calibration_blocks
        from minitron.measure.text import token_blocks
        from minitron.model.loading import load_tokenizer

        searching, length = self.searching, self.scoring.sequence_length
        seen, measured = calibration_blocks(model, calibration, self.scoring, held_back=searching.held_back)
        scored = self._scored(model, calibration, scores)
        if searching.trial_text is None:
            if scored is None:
                return seen, measured
            many = len(scored) * scored.shape[1] // length + 4 * searching.trial_samples
            pool = token_blocks(load_tokenizer(model), calibration, sequence_length=length, samples=many)
            return scored, unseen(pool, scored, searching.trial_samples)
        seen = seen if scored is None else scored
        blocks = token_blocks(
            load_tokenizer(model), searching.trial_text, sequence_length=length, samples=searching.trial_samples
        )
        require_apart(blocks, seen)
        return seen, blocks

    def _scored(self, model: Path, calibration: Path, scores: Scores) -> NDArray[np.int64] | None:
        """The sequences that scores of the same text were made on, where those are not what would be scored here."""
        from importance.score.calibrate import calibration_blocks
        from minitron.measure.records import Source

        made, asked = scores.settings, self.scoring
        if scores.data != Source(str(calibration)).fingerprint():
            return None
        samples, length, held = (
            int(made.get(name, default))
            for name, default in (
                ("samples", asked.samples),
                ("sequence_length", asked.sequence_length),
                ("held_back", 0),
            )
        )
        if (length, held) == (asked.sequence_length, self.searching.held_back) and samples <= asked.samples:
            return None
        options = dataclasses.replace(asked, samples=samples, sequence_length=length)
        return calibration_blocks(model, calibration, options, held_back=held)[0]

    def _task(self, model: Path, name: str) -> Callable[[PreTrainedModel], float]:
        """What a model lacks of a full score: 1 less the mean of the task's accuracies (acc_norm before acc), or of its
        first metric."""
        from minitron.measure.benchmarks import Benchmarks
        from minitron.model.loading import load_tokenizer

        benchmarks, tokenizer = Benchmarks([name]), load_tokenizer(model)

        def loss(candidate: PreTrainedModel) -> float:
            found = benchmarks.run(candidate, tokenizer, batch_size=self.scoring.batch_size)
            return 1.0 - sum(_score(metrics) for metrics in found.values()) / len(found)

        return loss


def _score(metrics: dict[str, float]) -> float:
    for name in ("acc_norm", "acc", "exact_match"):
        if name in metrics:
            return metrics[name]
    raise MinitronError(
        f"the task measures {', '.join(metrics)}, neither accuracy nor exact match; choose another "
        "task for --objective."
    )
