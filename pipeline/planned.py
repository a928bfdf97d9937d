"""Plan: the architectures that fit, their memory, and the report; from config.json, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron.files import refuse_existing, write_text
from pipeline.plan_document import plan_document, serve_line_of, speed_of
from pipeline.planning import Planning

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.cut.scores import Scores
    from minitron.engines.table import Fact
    from minitron.model.spec import ModelSpec
    from minitron.search.search import SearchResult


@dataclass(frozen=True)
class Planned:
    """What a search found."""

    model: Path
    """The checkpoint folder, or a config.json."""

    planning: Planning
    """What was asked for."""

    spec: ModelSpec
    """The model as it is."""

    scores: Scores | None
    """By which candidates were ranked, where there are some."""

    result: SearchResult
    """The architectures that fit, best first."""

    @cached_property
    def speed(self) -> dict[str, Any] | None:
        """Estimates of the model and of the chosen candidate, where the GPU's numbers are known."""
        return speed_of(self.spec, self.result, self.planning.prompt_of)

    @property
    def cut(self) -> bool:
        """Whether the chosen one is smaller than the model."""
        best, parent = self.result.best, self.result.parent
        formats = best.formats is not None and best.formats.quantised
        return best.sizes != parent.sizes or best.kept != parent.kept or formats

    @property
    def engine_log(self) -> tuple[Fact, ...]:
        """What the engine's log should say of the chosen one; empty for no engine."""
        from minitron.memory.footprint import engine_facts

        best = self.result.best
        left = best.left(self.spec)
        return engine_facts(left, self.result.served(left), self.result.budget)

    @property
    def serve(self) -> str:
        """The command that serves what fits; empty for no engine."""
        return serve_line_of(self.model, self.spec, self.result)

    @cached_property
    def plan(self) -> Plan:
        """The chosen one, with the indices that stay where there are scores."""
        from minitron.cut.plan import make_plan

        best, plain = self.result.best, self.model.is_dir() and self.spec.quantisation is None
        fallback = self._by_magnitude if plain else None
        report = self.result.to_json()
        formats = None if best.formats is None else best.formats.to_json()
        how: dict[str, Any] = {"fallback": fallback, "report": report, "formats": formats}
        return make_plan(self.spec, best.sizes, best.kept, self.scores, **how)

    def _by_magnitude(self, axis: str, layer: int | None) -> Any:
        # Reads the weights of the few axes that no score covers, and torch for that: only where it is needed.
        from minitron.cut.magnitude import weight_magnitude
        from minitron.model.checkpoint import Checkpoint

        return weight_magnitude(Checkpoint(self.model), self.spec)(axis, layer)

    def document(self, command: str = "") -> dict[str, Any]:
        """The report as one document (minitron.report.document); `command` is how it was asked for."""
        return plan_document(
            self.model,
            self.spec,
            self.result,
            self.scores,
            self.planning.budget_of,
            speed=self.speed,
            command=command,
        )

    def save(self, output: Path, document: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> None:
        """Write the plan alone where `output` ends in .json, else the plan and the report as a folder."""
        if output.suffix == ".json":
            self.plan.save(output, overwrite=overwrite)
            return
        from minitron.report.document import write_report

        write_report(output, document or self.document(), overwrite=overwrite, beside=self.plan.files())


def save_part(document: Mapping[str, Any], name: str, path: Path, *, overwrite: bool = False) -> None:
    """Write `report.html` or `report.md` of a document into a file of its own."""
    from minitron.report.document import report_files

    refuse_existing(path, overwrite=overwrite)
    write_text(path, report_files(document)[name])


def plan(model: Path, planning: Planning, *, scores: Path | Scores | None = None) -> Planned:
    """Look for smaller architectures that fit; reads no weights and imports no torch.

    `scores` are what `score` gave, or their file.  Raises NothingFits where there are none, MinitronError where the
    request contradicts itself or the scores are another model's."""
    from minitron.cut.scores import load_scores
    from minitron.model.identity import require_weights
    from minitron.model.stored import read_stored_spec
    from minitron.model.weight_files import is_complete

    spec = read_stored_spec(model)
    known = load_scores(scores) if isinstance(scores, Path) else scores
    if known is not None and is_complete(model):
        require_weights(known.weights, model, "the scores were", "score this model with minitron score")
    return Planned(model, planning, spec, known, planning.search(spec, known))
