"""The choice of an architecture in a run: all sieves of the search, the plan, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron.cut.plan import Plan, make_plan
from minitron.files import write_json
from minitron.progress import Note
from pipeline.compression import SEARCH, Compression
from pipeline.finalists import NEAR, race
from pipeline.measuring import MeasuredSearch
from pipeline.per_layer import size_layers
from pipeline.plan_document import plan_document

if TYPE_CHECKING:
    from importance.search.verdicts import Sieved
    from minitron.cut.scores import Scores
    from minitron.model.by_layer import ByLayer
    from minitron.model.spec import ModelSpec
    from minitron.progress import Progress
    from minitron.search.depth import Kept
    from minitron.search.search import SearchResult


@dataclass(frozen=True)
class Choice:
    """What was chosen and why."""

    request: Compression
    spec: ModelSpec
    scores: Scores
    """As memory is counted (Cutting.counted)."""

    result: SearchResult
    """Its chosen candidate is the one to build."""

    sieved: Sieved | None
    """What was measured; None where candidates were ranked by scores alone."""

    finalists: dict[str, Any] | None
    """What pipeline.finalists.race found; None where one candidate led by far."""

    plan: Plan

    @property
    def measured(self) -> int:
        """Architectures that were cut and measured."""
        return 0 if self.sieved is None else self.sieved.evaluations

    def write_report(self, folder: Path) -> None:
        """report.html, report.json and report.md, and the plan beside them."""
        from minitron.report.document import write_report

        sieves, request = None, self.request
        if self.sieved is not None:
            from minitron.report.sieves import sieves_document

            sieves = sieves_document(self.sieved.to_json(), self.finalists)
        limit = request.planning.budget_of
        document = plan_document(
            request.model,
            self.spec,
            self.result,
            self.scores,
            limit,
            sieves=sieves,
            command=request.command,
            title=request.title,
        )
        write_report(folder, document, overwrite=True, beside=self.plan.files())


def choose(request: Compression, spec: ModelSpec, scores: Scores, progress: Progress, note: Note) -> Choice:
    """Search, measure, race and plan, as the request asks; what is done of it before a stop is not done again.

    Raises MinitronError where nothing fits."""
    from minitron.cut.magnitude import weight_magnitude
    from minitron.model.checkpoint import Checkpoint

    searching, planning = request.searching, request.planning
    fallback = weight_magnitude(Checkpoint(request.model), spec)

    def plan(
        sizes: Mapping[str, int],
        kept: Kept,
        formats: Mapping[str, str] | None = None,
        report: dict[str, Any] | None = None,
        by_layer: ByLayer | None = None,
    ) -> Plan:
        how: dict[str, Any] = {"fallback": fallback, "report": report, "formats": formats, "by_layer": by_layer}
        return make_plan(spec, sizes, kept, scores, **how, **request.cutting.arguments)

    def choice(result: SearchResult, sieved: Sieved | None, finalists: dict[str, Any] | None) -> Choice:
        best = result.best
        formats = None if best.formats is None else best.formats.to_json()
        chosen = plan(best.sizes, best.kept, formats, result.to_json(), best.by_layer)
        return Choice(request, *request.cutting.counted(spec, scores), result, sieved, finalists, chosen)

    if not searching.measures or planning.sort == "memory":
        return choice(planning.search(*request.cutting.counted(spec, scores)), None, None)
    family = () if request.shared is None else request.shared.plannings
    search = MeasuredSearch(searching, planning, request.cutting, request.scoring, request.recipe.seed, family)
    sieved = search.run(
        request.model,
        request.calibration_text,
        scores,
        spec,
        plan,
        store=request.trials,
        device=request.device,
        progress=progress,
    )
    result, finalists = sieved.result, None
    near = sieved.near_ties(NEAR, searching.finalists) if searching.finalists > 1 else ()
    if len(near) > 1:
        finalists = race(near, plan, request, progress, note)
        result = replace(result, chosen=finalists["chosen"])
    note(_told(sieved, finalists))
    per_layer = None
    if searching.sizes == "per-layer":
        result, per_layer = size_layers(search, request, spec, scores, result, plan, progress, note)
    found = {"measured": sieved.to_json(), "finalists": finalists, "per_layer": per_layer}
    write_json(request.output / SEARCH, found)
    return choice(result, sieved, finalists)


def _told(sieved: Sieved, finalists: dict[str, Any] | None) -> str:
    """The outcome in a sentence."""
    loss = sieved.verdicts[0].measured.loss
    text = f"{sieved.evaluations} architectures measured, {sieved.result.feasible:,} fit; the least loss is {loss:.4g}"
    if sieved.heldout is not None:
        text += f"; rank correlation of the damage model {sieved.heldout.rank_correlation:.2f}"
    if finalists is None:
        return text
    return f"{text}; finalist {finalists['chosen'] + 1} of {len(finalists['finalists'])} recovers best"
