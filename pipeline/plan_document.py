"""The report document of a plan: candidates, remedies, speed estimates and the serve command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.serving import model_name

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import Gpu
    from minitron.model.spec import ModelSpec
    from minitron.search.search import SearchResult
    from pipeline.planning import Planning

PRUNED: Final = "PRUNED"
"""Stands in a command for the folder that a cut is still to write."""


def serve_line_of(model: Path, spec: ModelSpec, result: SearchResult) -> str:
    """The command that serves the model, or what is to be cut from it where it does not fit; empty for no engine.

    Of a model of which only the config is here the name stands in."""
    from minitron.memory.serve_line import serve_line
    from minitron.model.sources import hub_name

    found = hub_name(model)
    known = str(model) if model.is_dir() else model_name(model) if found is None else found.repo
    fits, best = result.parent.fits, result.best
    served = spec if fits else best.left(spec)
    kept = result.workload if fits else result.served(served)
    line = serve_line(known if fits else PRUNED, served, kept, result.budget)
    revision = found is not None and fits and found.revision
    return f"{line} --revision {revision}" if line and revision else line


def serve_line_for(folder: Path, planning: Planning, gguf: str = "") -> str:
    """The command that serves the checkpoint in `folder`, as it is stored, or its GGUF file, for the workload of a
    plan; empty for no engine."""
    from minitron.memory.formats import FORMATS
    from minitron.memory.serve_line import serve_line
    from minitron.model.stored import read_stored_spec

    spec, weights = read_stored_spec(folder), planning.weights
    plain = weights in FORMATS and not FORMATS[weights].quantised and spec.quantisation is None
    stored = replace(planning, weights=weights if plain else None, keep={})
    return serve_line(str(folder), spec, stored.workload(spec), stored.budget_for(spec), gguf)


def speed_of(spec: ModelSpec, result: SearchResult, prompt_of: Callable[[int], int]) -> dict[str, Any] | None:
    """The model's speed and that of the chosen candidate, where the GPU's numbers are known; `prompt_of` says how many
    tokens of a context are the prompt's."""
    from minitron.memory.serving_speed import speed_document

    best, workload = result.best, result.workload
    models, own = {"model": spec}, {}
    left = best.left(spec)
    if best.sizes != result.parent.sizes or best.kept != result.parent.kept or result.served(left) != workload:
        label = f"#{result.chosen + 1}"
        models[label], own[label] = left, result.served(left)
    if workload.context < 2:
        return None
    return speed_document(models, workload, result.budget, prompt_of(workload.context), own)


def plan_document(
    model: Path,
    spec: ModelSpec,
    result: SearchResult,
    scores: Scores | None,
    limit: Callable[[Gpu], Budget],
    *,
    speed: Mapping[str, Any] | None = None,
    sieves: Mapping[str, Any] | None = None,
    command: str = "",
    title: str = "",
) -> dict[str, Any]:
    """The document, in which the model is called `title`, or as its folder.

    `limit` says what another GPU's budget is, `sieves` (minitron.report.sieves) how candidates were measured,
    where they were."""
    from minitron.memory.questions import remedies
    from minitron.report.document import build_report

    budget, workload = result.budget, result.workload
    other = limit if budget.gpu is not None else None
    return build_report(
        spec,
        title or str(model),
        result,
        # Of memory: nothing but a smaller model has fewer parameters.
        remedies=() if result.parent.footprint.total <= budget.available else remedies(spec, workload, budget, other),
        scores=scores,
        speed=speed,
        command=command,
        serve=serve_line_of(model, spec, result),
        sieves=sieves,
    )
