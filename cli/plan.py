"""`minitron plan`: does it fit, what would make it fit, which smaller architectures do, and what each costs.

The document of --json is that of report.json, whose keys and units minitron/report.schema.json describes.  With --solve
it is {"question", "value", "total_bytes", "available_bytes", "spare_bytes", "terms", "cautions"}.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import plan_view, show
from cli.invocation import command_line
from cli.options import JsonOption, ModelArgument, OverwriteOption, ScoresOption
from cli.planning import Planning, takes_planning
from minitron.errors import MinitronError, NothingFits
from minitron.units import format_parameters

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.cut.scores import Scores
    from minitron.memory.budget import Budget
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec
    from minitron.search.search import SearchResult


_PRUNED = "PRUNED"
"""Stands in a command for the folder that `minitron prune` is still to write."""


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
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write the page of the report into this file.", metavar="FILE")
]
MarkdownOption = Annotated[
    Path | None, typer.Option("--markdown", help="Write the report as Markdown into this file.", metavar="FILE")
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
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model fits a GPU, what would make it fit, and which smaller ones do. Reads no weights."""
    from minitron.files import refuse_existing
    from minitron.model.spec import read_spec

    spec = read_spec(model)
    outputs = [path for path in (output, html, markdown) if path is not None]
    if solve is not None:
        if outputs:
            raise MinitronError("--solve answers one question and writes nothing; leave -o, --html and --markdown out.")
        _solve(model, spec, planning, solve, as_json=as_json)
        return
    for path in outputs:
        refuse_existing(path, overwrite=overwrite)
    known = None
    if scores is not None:
        from minitron.cut.scores import load_scores

        known = load_scores(scores)
    result = _search(model, spec, planning, known, as_json=as_json)
    speed = _speed(planning, spec, result)
    document = document_of(model, spec, planning, result, known, speed=speed) if outputs or as_json else {}
    if output is not None:
        _write(model, spec, result, known, document, output, overwrite=overwrite)
    _write_parts(document, html, markdown, overwrite=overwrite)
    if as_json:
        show.document(document)
        return
    plan_view.print_candidates(spec, result)
    plan_view.print_chosen(spec, result)
    plan_view.print_warnings(result)
    if serve := _serve(model, spec, result):
        show.line(f"Serve it: {serve}")
    if speed is not None:
        plan_view.print_speed(speed)
    for path in outputs:
        show.line(f"Written: {path}")


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
    from minitron.memory.footprint_lines import terms
    from minitron.memory.questions import cautions, fits, remedies

    plan_view.print_budget(model, budget, workload)
    plan_view.print_cautions(cautions(spec, workload, budget.gpu))
    parameters = format_parameters(spec.parameters().total)
    title = f"The model: {len(spec.layers)} layers, {parameters} parameters"
    plan_view.print_model(title, terms(spec, workload, budget), budget.available)
    if not fits(spec, workload, budget):
        limit = planning.budget_of if budget.gpu is not None else None
        plan_view.print_remedies(remedies(spec, workload, budget, limit))
        return
    show.line("")


def _serve(model: Path, spec: "ModelSpec", result: "SearchResult") -> str:
    """The command that serves the model, or what is to be cut from it where it does not fit; empty for no engine.

    Of a model of which only the config is here the name stands in."""
    from minitron.memory.vllm import serve_line

    if result.workload.engine.name != "vllm":
        return ""
    name = str(model) if model.is_dir() else model.stem
    return serve_line(name if result.parent.fits else _PRUNED, spec, result.workload, result.budget)


def document_of(
    model: Path,
    spec: "ModelSpec",
    planning: Planning,
    result: "SearchResult",
    scores: "Scores | None",
    *,
    speed: dict[str, Any] | None = None,
    sieves: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of the report; `sieves` is that of minitron.report.sieves, where candidates were measured."""
    from minitron.memory.questions import remedies
    from minitron.report.document import build_report

    budget, workload = result.budget, result.workload
    limit = planning.budget_of if budget.gpu is not None else None
    return build_report(
        spec,
        str(model),
        result,
        remedies=() if result.parent.fits else remedies(spec, workload, budget, limit),
        scores=scores,
        speed=speed,
        command=command_line(),
        serve=_serve(model, spec, result),
        sieves=sieves,
    )


def _speed(planning: Planning, spec: "ModelSpec", result: "SearchResult") -> dict[str, Any] | None:
    """The model's speed and that of the chosen candidate, where the GPU's numbers are known."""
    from minitron.memory.serving_speed import speed_document

    models = {"model": spec}
    if result.best.sizes != result.parent.sizes or result.best.kept != result.parent.kept:
        models[f"#{result.chosen + 1}"] = spec.resized(result.best.sizes, result.best.kept)
    workload = result.workload
    if workload.context < 2:
        return None
    return speed_document(models, workload, result.budget, planning.prompt_of(workload.context))


def _write(
    model: Path,
    spec: "ModelSpec",
    result: "SearchResult",
    scores: "Scores | None",
    document: dict[str, Any],
    output: Path,
    *,
    overwrite: bool,
) -> None:
    """The plan alone, or the plan and the report as a folder."""
    plan = _plan(model, spec, result, scores)
    if output.suffix == ".json":
        plan.save(output, overwrite=overwrite)
        return
    from minitron.report.document import write_report

    write_report(output, document, overwrite=overwrite, beside=plan.files())


def _write_parts(document: dict[str, Any], html: Path | None, markdown: Path | None, *, overwrite: bool) -> None:
    from minitron.files import refuse_existing, write_text

    for name, path in (("report.html", html), ("report.md", markdown)):
        if path is not None:
            from minitron.report.document import report_files

            refuse_existing(path, overwrite=overwrite)
            write_text(path, report_files(document)[name])


def _solve(model: Path, spec: "ModelSpec", planning: Planning, question: Question, *, as_json: bool) -> None:
    from minitron.memory.footprint_lines import terms
    from minitron.memory.gpus import GPUS
    from minitron.memory.questions import cautions, solve

    if question is Question.GPU and planning.device is None and planning.budget is None:
        budget = planning.budget_of(max(GPUS.values(), key=lambda gpu: gpu.usable))
    elif question is Question.GPU:
        raise MinitronError("--solve gpu looks for the GPU itself; leave --gpu, --gpu-memory and --budget out.")
    else:
        budget = planning.budget_of_device()
    answer = solve(question.value, spec, planning.workload(spec), budget, planning.budget_of)
    found, told = terms(spec, answer.workload, answer.budget), cautions(spec, answer.workload, answer.budget.gpu)
    if as_json:
        show.document(answer.to_json() | {"terms": [term.to_json() for term in found], "cautions": list(told)})
        return
    plan_view.print_budget(model, answer.budget, answer.workload)
    plan_view.print_answer(answer)
    plan_view.print_cautions(told)
    plan_view.print_model("The model then", found, answer.budget.available)


def _plan(model: Path, spec: "ModelSpec", result: "SearchResult", scores: "Scores | None") -> "Plan":
    """The chosen plan, with the indices that stay where there are scores."""
    from minitron.cut.plan import make_plan

    def by_magnitude(axis: str, layer: int | None) -> Any:
        # Reads the weights of the few axes that no score covers, and torch for that: only where it is needed.
        from minitron.cut.magnitude import weight_magnitude
        from minitron.model.checkpoint import Checkpoint

        return weight_magnitude(Checkpoint(model), spec)(axis, layer)

    best, fallback = result.best, by_magnitude if model.is_dir() else None
    return make_plan(spec, best.sizes, best.kept, scores, fallback=fallback, report=result.to_json())
