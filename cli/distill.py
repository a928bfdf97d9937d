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

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.options import (
    ComputeDtype,
    DeviceOption,
    Fp8KeepOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    Precision,
    SeedOption,
    SequenceLengthOption,
    StudentArgument,
    TeacherOption,
    TeacherPrecisionOption,
    count_option,
)
from cli.spread import spread_options
from minitron.errors import MinitronError
from minitron.units import format_bytes

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from distill.records import Source
    from distill.stages import Stage
    from distill.train import DistillResult

DEFAULT_TOKENS = 2**20


def _tokens(flag: str, help: str, **settings: Any) -> Any:
    return typer.Option(flag, parser=count_option, help=help, metavar="TOKENS", **settings)


def _number(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, show_default=False)


@dataclasses.dataclass(frozen=True)
class Training:
    """The recipe as typed; the names are those of distill.recipe.Recipe."""

    tokens: Annotated[
        int | None, _tokens("--tokens", "Tokens to train on: 1M unless --steps is given.", show_default=False)
    ] = None
    steps: Annotated[int | None, _number("--steps", "Optimiser steps, instead of --tokens.")] = None
    sequence_length: SequenceLengthOption = 512
    batch_tokens: Annotated[int, _tokens("--batch-tokens", "Tokens of one optimiser step.")] = 4096
    micro_batch: Annotated[
        int | None, _number("--micro-batch", "Sequences in one forward pass; about 2,048 tokens unless given.")
    ] = None
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest, after the warm-up.")] = 1e-4
    minimum_learning_rate: Annotated[
        float | None, _number("--minimum-learning-rate", "The last one; a tenth of the highest unless given.")
    ] = None
    warmup_steps: Annotated[
        int | None, _number("--warmup-steps", "Steps of linear rise; 100, at most a tenth of the run, unless given.")
    ] = None
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of matrices; vectors are not decayed.")] = 0.1
    gradient_clip: Annotated[float, typer.Option("--gradient-clip", help="The largest norm of a gradient.")] = 1.0
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            help="forward_kl, reverse_kl, jsd:0.5, skewed_kl:0.1, skewed_reverse_kl:0.1, top_k:64 or sampled:12.",
            metavar="NAME",
        ),
    ] = "forward_kl"
    loss_kernel: Annotated[
        str,
        typer.Option(
            "--loss-kernel",
            help="liger: liger-kernel's fused loss, on a GPU, where it is exact for the request (untested so far).",
            metavar="own|liger",
        ),
    ] = "own"
    temperature: Annotated[float, typer.Option("--temperature", help="Divides the logits of both models.")] = 1.0
    lm_weight: Annotated[
        float, typer.Option("--lm-weight", help="Times the cross entropy of the next token, added to the loss.")
    ] = 0.0
    mtp_weight: Annotated[
        float,
        typer.Option("--mtp-weight", help="Times the loss of the multi-token-prediction block, trained along then."),
    ] = 0.0
    mtp_lm_weight: Annotated[
        float,
        typer.Option("--mtp-lm-weight", help="Within it, times the cross entropy of the token after the next."),
    ] = 0.0
    cosine_weight: Annotated[
        float, typer.Option("--cosine-weight", help="Times 1 - cosine of the last hidden states, added to the loss.")
    ] = 0.0
    train: Annotated[
        str, typer.Option("--train", help="all parameters, the routers' alone, or all others.", metavar="NAME")
    ] = "all"
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Make activations anew on the way back: less memory.")
    ] = False
    vocab_chunk: Annotated[
        int | None, _number("--vocab-chunk", "Columns of the logits in memory at a time; all unless given.")
    ] = None
    most_skipped: Annotated[
        int, typer.Option("--most-skipped", help="Steps in a row that may be skipped where a loss is not finite.")
    ] = 3
    precision: Annotated[
        ComputeDtype, typer.Option("--precision", help="bf16: matmuls in bf16 over fp32 weights; fp32: everything.")
    ] = ComputeDtype.BF16
    validate_every: Annotated[
        int | None, _number("--validate-every", "Steps between validations; a fifth of the run unless given.")
    ] = None
    validation_sequences: Annotated[
        int, typer.Option("--validation-sequences", help="Held-out sequences, at most.")
    ] = 16
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            help="lm-eval tasks that every validation asks too, comma-separated: names or YAML files.",
            metavar="TASKS",
            show_default=False,
        ),
    ] = ""
    task_limit: Annotated[int | None, _number("--task-limit", "Items of a task that are asked; all unless given.")] = (
        None
    )
    patience: Annotated[
        int | None,
        _number("--patience", "End after so many validations in a row without a lower KL; never unless given."),
    ] = None
    select: Annotated[
        str,
        typer.Option("--select", help="The weights that become OUTPUT; the others go beside it.", metavar="last|best"),
    ] = "last"
    checkpoint_every: Annotated[
        int | None,
        _number("--checkpoint-every", "Steps between checkpoints; a tenth of the run, at most 500, unless given."),
    ] = None
    keep_checkpoints: Annotated[
        int, typer.Option("--keep-checkpoints", help="How many of the newest stay on the disk.")
    ] = 2
    async_checkpoints: Annotated[
        bool | None,
        typer.Option(
            "--async-checkpoints/--sync-checkpoints",
            help="Write them behind the steps that follow, from a copy in memory; async on a GPU unless given.",
            show_default=False,
        ),
    ] = None
    assistant_only: Annotated[
        bool, typer.Option("--assistant-only", help="Of conversations learn only what the assistant says.")
    ] = False
    most_broken: Annotated[
        int, typer.Option("--most-broken", help="Records of a source that may be broken; they are left out and named.")
    ] = 10
    seed: SeedOption = 0

    @property
    def recipe(self) -> "Recipe":
        """The same for distill; raises MinitronError for settings that contradict each other."""
        from distill.recipe import Recipe

        tasks = tuple(name.strip() for name in self.tasks.split(",") if name.strip())
        typed = dict(vars(self)) | {"precision": self.precision.value, "tasks": tasks}
        if self.tokens is None and self.steps is None:
            typed["tokens"] = DEFAULT_TOKENS
        return Recipe(**typed)


def takes_training(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `training` spread out into the options of Training, as typer reads them."""
    return spread_options(function, "training", Training)


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
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-teacher",
        help="Folder for what a sparse loss reads of the teacher: written once, later runs need no teacher in memory.",
        metavar="FOLDER",
        show_default=False,
    ),
]
TeacherDeviceOption = Annotated[
    str | None,
    typer.Option(
        "--teacher-device",
        help="Where the teacher is kept, as torch spells it: cpu, cuda:1; with the student unless given.",
        metavar="DEVICE",
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
OffloadOption = Annotated[
    bool,
    typer.Option(
        "--offload-teacher",
        help="For a teacher that memory does not hold: its layers are read from the disk, for many steps at once.",
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
def command(
    student: StudentArgument,
    teacher: TeacherOption,
    output: OutputOption,
    training: Training,
    data: BlendOption = None,
    recipe: RecipeOption = None,
    validation: ValidationOption = None,
    teacher_precision: TeacherPrecisionOption = Precision.BF16,
    fp8_keep: Fp8KeepOption = "attention,before-attention",
    cache_teacher: CacheOption = None,
    device: DeviceOption = None,
    teacher_device: TeacherDeviceOption = None,
    offload_teacher: OffloadOption = False,
    work: WorkOption = None,
    track: TrackOption = "none",
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a smaller model on the logits of its teacher. Run the same command again to go on after a stop."""
    from distill.fp8 import parse_kept
    from distill.processes import joined
    from distill.records import parse_source
    from distill.stages import distill_stages
    from distill.train import distill
    from minitron.files import read_json
    from minitron.progress import silent
    from minitron.prune import DISTILLATION
    from minitron.report_training import add_training, require_report

    started = time.monotonic()
    sources = [parse_source(typed) for typed in data or ()]
    stages = _stages(recipe, training, has_data=bool(sources))
    if report is not None:
        require_report(report)
    with joined(device) as (processes, own):
        if teacher_device is not None and processes.world_size > 1:
            raise MinitronError("many processes share the teacher with the student; leave --teacher-device out.")
        how: dict[str, Any] = {
            "validation": validation,
            "teacher_precision": teacher_precision.value,
            "fp8_keep": parse_kept(fp8_keep),
            "cache": cache_teacher,
            "device": own,
            "teacher_device": teacher_device,
            "offload_teacher": offload_teacher,
            "overwrite": overwrite,
            "work": work,
            "track": track,
            "processes": processes,
            # One of many processes speaks.
            "progress": show.bar if processes.is_first else silent,
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
            "teacher_precision": teacher_precision.value,
            "cache_teacher": None if cache_teacher is None else str(cache_teacher),
            "fp8_keep": fp8_keep,
            "device": device,
            "teacher_device": teacher_device,
            "offload_teacher": offload_teacher,
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
    from distill.stages import Stage, read_recipe

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
    from minitron.text import text_hash

    found: dict[str, Any] = {
        "data": [{"path": source.place, "sha256": source.fingerprint(), "weight": source.weight} for source in sources]
    }
    if validation is not None:
        found["validation"] = {"path": validation, "sha256": text_hash(validation)}
    return found


def print_result(result: "DistillResult") -> None:
    """The curve, and what there was to gain."""
    from distill.router_load import told
    from distill.tasks import task_metrics

    rows: list[list[show.Cell]] = [
        [
            *(point["step"], point["tokens"], point["kl"], point["perplexity"], f"{point['top1_agreement']:.1%}"),
            *(f"{value:.4g}" for value in task_metrics(point).values()),
        ]
        for point in result.curve
    ]
    columns = ["step", "tokens", "KL to teacher", "perplexity", "top-1 agreement", *task_metrics(result.curve[0])]
    show.table("On held-out text; KL in nats", columns, rows)
    if (load := told(result.curve[0], result.selected)) is not None:
        show.line(load)
    teacher = f"The teacher ({result.teacher_precision}) has a perplexity of {result.perplexity_teacher:.4g}"
    if result.drift is not None:
        teacher += f" and takes {format_bytes(result.drift.stored_bytes)}"
    show.line(f"{teacher}. {result.tokens:,} tokens in {result.seconds:,.0f} s, {result.tokens_per_s:,.0f} tokens/s.")
