"""`minitron distill`: train a smaller model on the logits of the one it was cut from.

`results` of --json:

    {"teacher_precision", "steps", "tokens", "seconds", "tokens_per_s",
     "kl_before", "kl_after", "perplexity_before", "perplexity_after", "perplexity_teacher",
     "skipped_steps", "selected_step", "stream_weight",
     "range_test": {"steps", "trials": [{"learning_rate", "loss"}, ...]} or null,
     "drift": {"kl", "top1_agreement", "perplexity", "tokens", "weights", "stored_bytes", "bf16_bytes"} or null,
     "curve": [{"step", "tokens", "kl", "perplexity", "top1_agreement",
                of a student with a trained MTP block "mtp_kl", "mtp_acceptance",
                of a mixture of experts "busiest_expert" (tokens, in multiples of the mean), "idle_experts",
                and "tasks": {task: {metric: value}} where there are some}, ...],
     "stages": [the same of every stage before the last, where there is a recipe file]}

All of them are measured on held-out text.  `seconds` and `tokens_per_s` are those of the steps; the document's own
`seconds` are those of the whole command.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.distillation import DISTILLATION
from cli.distillation import request as build
from cli.dry_run import DryRunOption, tell
from cli.option_groups import Option, takes
from cli.options import JsonOption
from cli.training import DEFAULT_TOKENS, TRAINING
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.recipe_file import Stage, read_recipe
from minitron.errors import MinitronError
from minitron.units import format_bytes
from pipeline.distillation import distill
from pipeline.rehearsals import rehearse_distill

if TYPE_CHECKING:
    from distill.run.result import DistillResult
    from minitron.measure.records import Source

RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="Training stages instead of the training options: a TOML file, or the name of a recipe that comes with "
        "Minitron (docs/distillation.md lists them).",
        metavar="FILE|NAME",
        show_default=False,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Report folder to add the outcome to, the learning curve, written by `minitron plan -o`.",
        metavar="FOLDER",
        show_default=False,
    ),
]


@takes("request", Distillation, DISTILLATION, build=build)
@takes("training", Recipe, TRAINING, build=dict)
def command(
    request: Distillation,
    training: dict[str, Any],
    recipe: RecipeOption = None,
    report: ReportOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a smaller model on the logits of its teacher. Run the same command again to resume after a stop."""
    started = time.monotonic()
    how = _recipe(recipe, training)
    if dry_run:
        inputs = {"student": request.student, "teacher": request.teacher}
        asked = {"recipe": None if recipe is None else str(recipe)} | _settings(request)
        tell(rehearse_distill(request, how), request.output, inputs, asked, as_json=as_json)
        return
    found = distill(request, how, report=report, progress=show.bar, note=show.note)
    if not found.is_first:
        return
    if as_json:
        inputs = {"student": request.student, "teacher": request.teacher} | _texts(request.sources, request.validation)
        settings = found.result.recipe.to_json() | {"recipe": None if recipe is None else str(recipe)}
        seconds = time.monotonic() - started
        show.document(
            show.run_document(request.output, inputs, settings | _settings(request), found.to_json(), seconds)
        )
        return
    for number, result in enumerate(found.stages, 1):
        if len(found.stages) > 1:
            show.line(f"Stage {number} of {len(found.stages)}")
        print_result(result)
    show.line(f"Written: {request.output}")


_FLAGS = {name: row.flag for name, row in TRAINING.items() if isinstance(row, Option)}


def _recipe(file: Path | None, training: dict[str, Any]) -> Recipe | tuple[Stage, ...]:
    """The stages of the recipe file, or one recipe from the options."""
    if file is None:
        length = {"tokens": DEFAULT_TOKENS} if training["tokens"] is training["steps"] is None else {}
        return Recipe(**training | length)
    plain = {field.name: field.default for field in dataclasses.fields(Recipe)}
    typed = [name for name, value in training.items() if value != plain[name]]
    if typed:
        raise MinitronError(
            f"{_FLAGS[typed[0]]} conflicts with --recipe; write it into the recipe file, or drop one of the two."
        )
    return read_recipe(file)


def _settings(request: Distillation) -> dict[str, Any]:
    """The settings in --json beside the recipe: devices and teacher."""
    return {
        "device": request.device,
        "teacher_precision": request.teacher_precision,
        "fp8_keep": str(request.fp8_keep),
        "student_format": request.student_format,
        "student_keep": dict(request.student_keep),
        "student_kv": request.student_kv,
        "student_round": request.student_round,
        "student_scales": request.student_scales,
        "cache_teacher": None if request.cache is None else str(request.cache),
        "teacher_device": request.teacher_device,
        "offload_teacher": request.offload_teacher,
        "teachers": {domain: str(teacher) for domain, teacher in request.teachers.items()},
        "on_policy_endpoint": request.on_policy_endpoint,
        "on_policy_model": request.on_policy_model,
    }


def _texts(sources: Sequence["Source"], validation: Path | None) -> dict[str, Any]:
    """The texts in --json: paths, hashes and weights."""
    from minitron.files import file_hash

    found: dict[str, Any] = {
        "data": [{"path": source.place, "sha256": source.fingerprint(), "weight": source.weight} for source in sources]
    }
    if validation is not None:
        found["validation"] = {"path": validation, "sha256": file_hash(validation)}
    return found


def print_result(result: "DistillResult") -> None:
    """The learning curve, and the teacher's perplexity."""
    from distill.run import mtp, router_load
    from distill.run.tasks import task_metrics

    rows: list[list[show.Cell]] = [
        [
            *(point["step"], point["tokens"], point["kl"], point["perplexity"], f"{point['top1_agreement']:.1%}"),
            *(f"{value:.4g}" for value in task_metrics(point).values()),
        ]
        for point in result.curve
    ]
    columns = ["step", "tokens", "KL to teacher", "perplexity", "top-1 agreement", *task_metrics(result.curve[0])]
    show.table("On held-out text; KL in nats", columns, rows)
    for told in (router_load.told, mtp.told):
        if (sentence := told(result.curve[0], result.selected)) is not None:
            show.line(sentence)
    teacher = f"The teacher ({result.teacher_precision}) has a perplexity of {result.perplexity_teacher:.4g}"
    if result.drift is not None:
        teacher += f" and takes {format_bytes(result.drift.stored_bytes)}"
    show.line(f"{teacher}. {result.tokens:,} tokens in {result.seconds:,.0f} s, {result.tokens_per_s:,.0f} tokens/s.")
