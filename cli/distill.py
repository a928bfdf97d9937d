"""`minitron distill`: train a smaller model on the logits of the one it was cut from.

`results` of --json:

    {"teacher_precision", "steps", "tokens", "seconds", "tokens_per_s",
     "kl_before", "kl_after", "perplexity_before", "perplexity_after", "perplexity_teacher",
     "skipped_steps", "selected_step",
     "drift": {"kl", "top1_agreement", "perplexity", "tokens", "weights", "stored_bytes", "bf16_bytes"} or null,
     "curve": [{"step", "tokens", "kl", "perplexity", "top1_agreement",
                of a student with a trained MTP block "mtp_kl", "mtp_acceptance",
                of a mixture of experts "busiest_expert" (tokens, in multiples of the mean), "idle_experts",
                and "tasks": {task: {metric: value}} where there are some}, ...],
     "stages": [the same of every stage before the last, where there is a recipe file]}

All of them are measured on held-out text.  `seconds` and `tokens_per_s` are those of the steps; the document's own
`seconds` are those of the whole command.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.options import (
    DeviceOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    StudentArgument,
    TeacherOption,
)
from cli.teacher_options import Keeping, takes_keeping
from cli.training import Training, takes_training
from minitron.errors import MinitronError
from minitron.units import format_bytes

if TYPE_CHECKING:
    from distill.run.result import DistillResult
    from distill.run.stages import Stage
    from distill.text.records import Source

ValidationOption = Annotated[
    Path | None,
    typer.Option(
        "--validation",
        help="Held-out text; the end of --data is held out where none is given.",
        metavar="FILE",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="TOML file with stages in a row instead of the options of training; see docs/distillation.md.",
        metavar="FILE",
        show_default=False,
    ),
]
BlendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Text: a .txt, .jsonl or .parquet file, a folder of them, or hf:NAME of a dataset on the hub; "
        "WEIGHT:PATH several times for a blend.",
        metavar="[WEIGHT:]PATH",
        show_default=False,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="A report that `minitron plan -o` wrote: the learning curve is added to it.",
        metavar="FOLDER",
        show_default=False,
    ),
]
TrackOption = Annotated[
    str,
    typer.Option("--track", help="Send figures while it runs: none, tensorboard, wandb or trackio.", metavar="SERVICE"),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work", help="Where checkpoints are kept; OUTPUT.work unless given.", metavar="FOLDER", show_default=False
    ),
]


@takes_training
@takes_keeping
def command(
    student: StudentArgument,
    teacher: TeacherOption,
    output: OutputOption,
    training: Training,
    keeping: Keeping,
    data: BlendOption = None,
    recipe: RecipeOption = None,
    validation: ValidationOption = None,
    device: DeviceOption = None,
    work: WorkOption = None,
    track: TrackOption = "none",
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a smaller model on the logits of its teacher. Run the same command again to go on after a stop."""
    from distill.processes import joined
    from distill.run.stages import distill_stages
    from distill.run.train import distill
    from distill.text.records import parse_source
    from minitron.cut.prune import DISTILLATION
    from minitron.files import read_json
    from minitron.progress import silent
    from minitron.report.document import add_training, require_report

    started = time.monotonic()
    sources = [parse_source(typed) for typed in data or ()]
    stages = _stages(recipe, training, has_data=bool(sources))
    if report is not None:
        require_report(report)
    with joined(device) as (processes, own):
        keeping.check(processes.world_size)
        how: dict[str, Any] = {
            "validation": validation,
            "device": own,
            "overwrite": overwrite,
            "work": work,
            "track": track,
            "processes": processes,
            # One of many processes speaks.
            "progress": show.bar if processes.is_first else silent,
            **keeping.arguments,
        } | ({"note": show.note} if processes.is_first else {})
        if recipe is None:
            results = [distill(student, teacher, sources, output, stages[0].recipe, **how)]
        else:
            results = distill_stages(student, teacher, sources, output, stages, **how)
    if not processes.is_first:
        return
    if report is not None:
        add_training(report, read_json(output / DISTILLATION))
    if as_json:
        inputs = {"student": student, "teacher": teacher} | _texts(sources, validation)
        settings = stages[-1].recipe.to_json() | {
            "recipe": None if recipe is None else str(recipe),
            "device": device,
            **keeping.settings,
        }
        told = results[-1].to_json() | {"stages": [result.to_json() for result in results[:-1]]}
        show.document(show.run_document(output, inputs, settings, told, time.monotonic() - started))
        return
    for number, result in enumerate(results, 1):
        if len(results) > 1:
            show.line(f"Stage {number} of {len(results)}")
        print_result(result)
    show.line(f"Written: {output}")


def _stages(recipe: Path | None, training: Training, *, has_data: bool) -> tuple["Stage", ...]:
    """What to do: the stages of the recipe file, or one as typed."""
    from distill.run.stages import Stage, read_recipe

    if recipe is None:
        if not has_data:
            raise MinitronError("there is no text to train on; give some with --data.")
        return (Stage(training.recipe, ()),)
    typed = [name for name, value in vars(training).items() if value != getattr(Training(), name)]
    if typed:
        flag = f"--{typed[0].replace('_', '-')}"
        raise MinitronError(f"{flag} and --recipe both say how to train; write it into the recipe or leave one out.")
    return read_recipe(recipe)


def _texts(sources: Sequence["Source"], validation: Path | None) -> dict[str, Any]:
    """What --json says of the text that went in."""
    from minitron.measure.text import text_hash

    found: dict[str, Any] = {
        "data": [{"path": source.place, "sha256": source.fingerprint(), "weight": source.weight} for source in sources]
    }
    if validation is not None:
        found["validation"] = {"path": validation, "sha256": text_hash(validation)}
    return found


def print_result(result: "DistillResult") -> None:
    """The curve, and what there was to gain."""
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
