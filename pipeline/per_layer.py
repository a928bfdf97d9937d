"""Sizes by layer in a run: what was chosen with one size for all layers is refined layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minitron.progress import Note
from pipeline.compression import Compression
from pipeline.measuring import MeasuredSearch

if TYPE_CHECKING:
    from importance.search.per_layer import Tried
    from importance.search.sieves import Planner
    from minitron.cut.plan import Plan
    from minitron.cut.scores import Scores
    from minitron.model.by_layer import ByLayer
    from minitron.model.spec import ModelSpec
    from minitron.progress import Progress
    from minitron.search.candidate import Candidate
    from minitron.search.depth import Kept
    from minitron.search.search import SearchResult


def size_layers(
    search: MeasuredSearch,
    request: Compression,
    spec: ModelSpec,
    scores: Scores,
    result: SearchResult,
    plan: Planner,
    progress: Progress,
    note: Note,
) -> tuple[SearchResult, dict[str, Any]]:
    """`result` with the candidate in front, and chosen, whose layers have sizes of their own, where it loses less than
    the chosen one; and what was measured, for the record."""
    from importance.search.per_layer import refine
    from minitron.search.per_layer import distinct_starts

    best, budget = result.best, result.budget
    formats = None if best.formats is None else best.formats.to_json()

    def planned(sizes: Mapping[str, int], kept: Kept, by_layer: ByLayer) -> Plan:
        return plan(sizes, kept, formats, by_layer=by_layer)

    counted, counted_scores = request.cutting.counted(spec, scores)
    ranked = [best, *(one for one in result.candidates if one is not best and one.formats == best.formats)]
    starts = distinct_starts(
        counted, ranked, result.served(counted, best), request.planning.lattice_options(), budget.workspace
    )
    trials = search.trials(
        request.model, request.calibration_text, scores, spec, store=request.trials, device=request.device
    )
    uniform = plan(best.sizes, best.kept, formats)
    found = refine(trials, starts, uniform, counted_scores, planned, budget.available, progress=progress)
    if (own := found.best) is None:
        note(
            f"sizes by layer do not lose less than the {found.uniform.loss:.4g} of one size for all layers, which stays"
        )
        return result, found.to_json()
    note(f"sizes by layer: the least loss is {own.measured.loss:.4g}, with one size for all {found.uniform.loss:.4g}")
    chosen = _candidate(counted, best, own, result)
    return replace(result, candidates=(chosen, *result.candidates), chosen=0), found.to_json()


def _candidate(spec: ModelSpec, best: Candidate, own: Tried, result: SearchResult) -> Candidate:
    from minitron.memory.footprint import footprint
    from minitron.search.dead_zones import dead_zones
    from minitron.search.format_choices import errors_of, worth

    largest = {key: max(sizes.values()) for key, sizes in own.by_layer.items()}
    target = spec.resized(own.sizes, own.kept, own.by_layer)
    counts = target.parameters()
    parameters = int(counts.total)
    score = float(parameters)
    if best.formats is not None:
        whole = int(spec.parameters().total)
        score = float(whole * worth(parameters / whole, sum(errors_of(counts, best.formats.of).values())))
    sizes = {key: target.named_sizes[key] for key in (*best.sizes, *largest) if key in target.named_sizes}
    candidate = replace(
        best,
        sizes=sizes,
        kept=own.kept,
        by_layer=own.by_layer,
        letters=target.letters,
        parameters=parameters,
        footprint=footprint(target, result.served(target, best), result.budget.workspace),
        score=score,
    )
    return replace(candidate, fits=True, warnings=dead_zones(spec, candidate))
