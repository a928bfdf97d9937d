"""`minitron plan`: does it fit, what would make it fit, which smaller architectures do, and what each costs.

The document of --json, sizes in bytes:

    {"gpu", "workload", "budget": {"usable", "utilization", "reserve", "workspace", "available"},
     "parent": CANDIDATE, "candidates": [CANDIDATE, ...], "chosen", "searched", "feasible", "ranking",
     "terms": [TERM, ...], "remedies": [REMEDY, ...], "cautions": [text, ...], "serve": text or null}

    CANDIDATE = {"sizes": {config key: size}, "layers", "kept_layers", "parameters",
                 "footprint": {"weights", "kv_cache", "conv_state", "ssm_state", "workspace", "total", ...}, "fits",
                 "score"}

`candidates` are the best that fit, best first, and `chosen` is an index into them.  `layers` has a letter a layer,
`kept_layers` says which layers of the model they are.  `terms` say how every line of the model's footprint is counted.
With --solve the document is {"question", "value", "total_bytes", "available_bytes", "spare_bytes", "note", "terms"}.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import plan_view, show
from cli.options import JsonOption, ModelArgument, OverwriteOption, ScoresOption
from cli.planning import Planning, takes_planning
from minitron.errors import MinitronError, NothingFits
from minitron.units import format_parameters

if TYPE_CHECKING:
    from minitron.memory import Budget, Workload
    from minitron.scores import Scores
    from minitron.search import SearchResult
    from minitron.spec import ModelSpec


class Question(StrEnum):
    """What to solve for."""

    CONTEXT = "context"
    BATCH = "batch"
    GPU = "gpu"
    WEIGHTS = "weights"


PlanOutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Write report.html, report.json, report.md and plan.json into this folder; or the plan alone, if it ends "
        "in .json.",
    ),
]
SolveOption = Annotated[
    Question | None,
    typer.Option(
        "--solve",
        help="Ask the other way round: the longest context, the largest batch, the smallest GPU or the mildest weights "
        "with which the model fits as it is.",
        show_default=False,
    ),
]


@takes_planning
def command(
    model: ModelArgument,
    planning: Planning,
    scores: ScoresOption = None,
    solve: SolveOption = None,
    output: PlanOutputOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model fits a GPU, what would make it fit, and which smaller ones do. Reads no weights."""
    from minitron.files import refuse_existing
    from minitron.spec import read_spec

    spec = read_spec(model)
    if solve is not None:
        _solve(model, spec, planning, solve, as_json=as_json)
        return
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    known = None
    if scores is not None:
        from minitron.scores import load_scores

        known = load_scores(scores)
    result = _search(model, spec, planning, known, as_json=as_json)
    if output is not None:
        _save(model, spec, result, known, output, overwrite=overwrite)
    if as_json:
        show.document(result.to_json() | _about(model, spec, planning))
        return
    plan_view.print_candidates(spec, result)
    plan_view.print_chosen(spec, result)
    if output is not None:
        show.line(f"Written: {output}")


def _search(
    model: Path, spec: "ModelSpec", planning: Planning, scores: "Scores | None", *, as_json: bool
) -> "SearchResult":
    """Look for smaller models, and tell first how the model itself stands, which holds even where none fits."""
    budget, workload = planning.budget_of_device(), planning.workload(spec)
    try:
        result = planning.search(spec, scores)
    except NothingFits:
        if not as_json:
            _print_model(model, spec, planning, budget, workload)
        raise
    if not as_json:
        _print_model(model, spec, planning, budget, workload)
    return result


def _print_model(model: Path, spec: "ModelSpec", planning: Planning, budget: "Budget", workload: "Workload") -> None:
    from minitron.questions import cautions, fits, remedies
    from minitron.terms import terms
    from minitron.vllm import serve_line

    plan_view.print_budget(model, budget, workload)
    plan_view.print_cautions(cautions(spec, workload, budget.gpu))
    parameters = format_parameters(spec.parameters().total)
    title = f"The model: {len(spec.layers)} layers, {parameters} parameters"
    plan_view.print_model(title, terms(spec, workload, budget), budget.available)
    if not fits(spec, workload, budget):
        limit = planning.budget_of if budget.gpu is not None else None
        plan_view.print_remedies(remedies(spec, workload, budget, limit))
    elif workload.engine.name == "vllm":
        show.line(f"Serve it: {serve_line(_name(model), workload, budget.utilization)}")
    show.line("")


def _name(model: Path) -> str:
    """What an engine is told to serve: the folder, or the name of a model of which only the config is here."""
    return str(model) if model.is_dir() else model.stem


def _about(model: Path, spec: "ModelSpec", planning: Planning) -> dict[str, Any]:
    """What the document holds beside the search."""
    from minitron.questions import cautions, fits, remedies
    from minitron.terms import terms
    from minitron.vllm import serve_line

    budget, workload = planning.budget_of_device(), planning.workload(spec)
    limit = planning.budget_of if budget.gpu is not None else None
    good = fits(spec, workload, budget)
    return {
        "terms": [term.to_json() for term in terms(spec, workload, budget)],
        "remedies": [] if good else [each.to_json() for each in remedies(spec, workload, budget, limit)],
        "cautions": list(cautions(spec, workload, budget.gpu)),
        "serve": serve_line(_name(model), workload, budget.utilization) if workload.engine.name == "vllm" else None,
    }


def _solve(model: Path, spec: "ModelSpec", planning: Planning, question: Question, *, as_json: bool) -> None:
    from minitron.gpus import GPUS
    from minitron.questions import solve
    from minitron.terms import terms

    if question is Question.GPU and planning.gpu is None and planning.budget is None:
        budget = planning.budget_of(max(GPUS.values(), key=lambda gpu: gpu.usable))
    elif question is Question.GPU:
        raise MinitronError("--solve gpu looks for the GPU itself; leave --gpu and --budget out.")
    else:
        budget = planning.budget_of_device()
    answer = solve(question.value, spec, planning.workload(spec), budget, planning.budget_of)
    found = terms(spec, answer.workload, answer.budget)
    if as_json:
        show.document(answer.to_json() | {"terms": [term.to_json() for term in found]})
        return
    plan_view.print_budget(model, answer.budget, answer.workload)
    plan_view.print_answer(answer)
    plan_view.print_model("The model then", found, answer.budget.available)


def _save(
    model: Path, spec: "ModelSpec", result: "SearchResult", scores: "Scores | None", path: Path, *, overwrite: bool
) -> None:
    """Write the chosen plan, with the indices that stay where there are scores."""
    from minitron.plan import make_plan

    def by_magnitude(axis: str, layer: int | None) -> Any:
        # Reads the weights of the few axes that no score covers, and torch for that: only where it is needed.
        from minitron.checkpoint import Checkpoint
        from minitron.magnitude import weight_magnitude

        return weight_magnitude(Checkpoint(model), spec)(axis, layer)

    best, fallback = result.best, by_magnitude if model.is_dir() else None
    plan = make_plan(spec, best.sizes, best.kept, scores, fallback=fallback, report=result.to_json())
    plan.save(path, overwrite=overwrite)
