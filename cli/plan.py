"""`minitron plan`: whether a model fits, what would make it fit, and which smaller architectures fit.

The document of --json is that of report.json, whose keys and units minitron/report.schema.json describes.  With --solve
it is {"question", "value", "total_bytes", "available_bytes", "spare_bytes", "terms", "engine_log",
"cautions"}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import plan_view, show
from cli.invocation import command_line
from cli.option_groups import takes
from cli.options import JsonOption, OverwriteOption, PlanModelsArgument, ScoresOption
from cli.planning import PLANNING
from minitron.errors import MinitronError, NothingFits
from minitron.files import refuse_existing, sole, write_text
from minitron.units import format_bytes, format_parameters
from pipeline.planned import Planned, save_part
from pipeline.planned import plan as planned
from pipeline.planning import Planning
from pipeline.solution import Question, solve
from pipeline.standing import Standing, stand

PlanOutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Where to write the result: a folder for report.html, report.json, report.md and plan.json; if it ends in "
        ".json, the plan only.",
        metavar="PATH",
    ),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML file.", metavar="FILE")]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--page",
        help="Write a planner, one offline page: these models and those that Minitron brings, on every GPU. Takes any "
        "number of models.",
        metavar="FILE",
    ),
]
MarkdownOption = Annotated[
    Path | None, typer.Option("--markdown", help="Write the report as one Markdown file.", metavar="FILE")
]
SolveOption = Annotated[
    Question | None,
    typer.Option(
        "--solve",
        help="Solve for the longest context, the largest batch, the smallest GPU or the highest weight "
        "precision at which the model fits without pruning.",
        show_default=False,
    ),
]


@takes("planning", Planning, PLANNING)
def command(
    planning: Planning,
    models: PlanModelsArgument = None,
    scores: ScoresOption = None,
    solve: SolveOption = None,
    output: PlanOutputOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    page: PageOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether a model fits a GPU, what would make it fit, and which smaller ones do. Reads no weights."""
    outputs = [path for path in (output, html, markdown) if path is not None]
    if page is not None:
        if solve is not None or outputs or as_json or scores is not None:
            raise MinitronError("--page writes one page; drop --solve, -o, --html, --markdown, --scores and --json.")
        _write_page(models or [], planning, page, overwrite=overwrite)
        return
    model = _only(models or [])
    if solve is not None:
        if outputs:
            raise MinitronError("--solve writes nothing; drop -o, --html and --markdown.")
        _solve(model, planning, solve, as_json=as_json)
        return
    from minitron.cut.plan import beside

    with sole(*outputs, *(beside(path) for path in outputs if path.suffix == ".json")):
        for path in outputs:
            refuse_existing(path, overwrite=overwrite)
        found = _plan(model, planning, scores, as_json=as_json)
        document = found.document(command_line()) if outputs or as_json else {}
        if output is not None:
            found.save(output, document, overwrite=overwrite)
        for name, part in (("report.html", html), ("report.md", markdown)):
            if part is not None:
                save_part(document, name, part, overwrite=overwrite)
    if as_json:
        show.document(document)
        return
    _print(found)
    for path in outputs:
        show.line(f"Written: {path}")


def _only(models: Sequence[Path]) -> Path:
    """The one model of a plan."""
    if len(models) != 1:
        told = "no model is given" if not models else f"{len(models)} models are given"
        raise MinitronError(f"{told}, and a plan is of one; give one, or --page for a page of many.")
    return models[0]


def _write_page(models: Sequence[Path], planning: Planning, page: Path, *, overwrite: bool) -> None:
    from pipeline.planner_page import planner_page

    refuse_existing(page, overwrite=overwrite)
    with sole(page):
        text = planner_page(models, planning, progress=show.bar)
        write_text(page, text)
    show.line(f"Written: {page} ({format_bytes(len(text.encode()))})")


def _plan(model: Path, planning: Planning, scores: Path | None, *, as_json: bool) -> Planned:
    """Search for smaller models; print first whether the model itself fits, even if nothing smaller does."""
    standing = stand(model, planning)
    try:
        found = planned(model, planning, scores=scores)
    except NothingFits:
        if not as_json:
            _print_standing(model, standing)
        raise
    if not as_json:
        _print_standing(model, standing)
    return found


def _print_standing(model: Path, standing: Standing) -> None:
    spec = standing.spec
    plan_view.print_budget(model, standing.budget, standing.workload)
    plan_view.print_cautions(standing.cautions)
    parameters = format_parameters(spec.parameters().total)
    title = f"The model: {len(spec.layers)} layers, {parameters} parameters"
    plan_view.print_model(title, standing.terms, standing.budget.available)
    plan_view.print_engine_log(standing.engine_log, standing.workload)
    if not standing.fits:
        plan_view.print_remedies(standing.remedies)
        return
    if not standing.engine_log:
        show.line("")


def _print(found: Planned) -> None:
    plan_view.print_candidates(found.spec, found.result)
    plan_view.print_chosen(found.spec, found.result)
    if found.cut:
        plan_view.print_engine_log(found.engine_log, found.result.workload)
    plan_view.print_warnings(found.result)
    if serve := found.serve:
        show.line(f"Serve it: {serve}")
    if found.speed is not None:
        plan_view.print_speed(found.speed)


def _solve(model: Path, planning: Planning, question: Question, *, as_json: bool) -> None:
    found = solve(model, planning, question)
    if as_json:
        show.document(found.to_json())
        return
    standing = found.standing
    plan_view.print_budget(model, standing.budget, standing.workload)
    plan_view.print_answer(found.answer)
    plan_view.print_cautions(standing.cautions)
    plan_view.print_model("The model then", standing.terms, standing.budget.available)
    plan_view.print_engine_log(standing.engine_log, standing.workload)
