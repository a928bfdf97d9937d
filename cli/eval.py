"""`minitron eval`: checkpoints side by side, what was promised beside what was measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import show
from cli.options import (
    BatchSizeOption,
    ComputeDtype,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelsArgument,
    SamplesOption,
    SequenceLengthOption,
    SpeedOption,
    TextOption,
)
from minitron.errors import MinitronError
from minitron.units import format_bytes

if TYPE_CHECKING:
    from minitron.measure.evaluate import Evaluation

AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", help="The teacher: adds KL divergence and top-1 agreement.", metavar="FOLDER"),
]
TasksOption = Annotated[
    str | None,
    typer.Option("--tasks", help="lm-eval tasks, comma-separated: names or YAML files.", metavar="TASKS"),
]
TaskLimitOption = Annotated[int | None, typer.Option("--task-limit", min=1, help="Ask only so many items of a task.")]


def command(
    models: ModelsArgument,
    text: TextOption,
    against: AgainstOption = None,
    tasks: TasksOption = None,
    task_limit: TaskLimitOption = None,
    sequence_length: SequenceLengthOption = 1024,
    samples: SamplesOption = 64,
    batch_size: BatchSizeOption = 1,
    dtype: DtypeOption = ComputeDtype.BF16,
    device: DeviceOption = None,
    speed: SpeedOption = True,
    as_json: JsonOption = False,
) -> None:
    """Measure checkpoints on a text: perplexity, divergence from a teacher, size, speed, memory, lm-eval tasks."""
    from minitron.measure.evaluate import evaluate_folders
    from minitron.measure.text import text_hash

    started = time.monotonic()
    if len(set(models)) < len(models):
        raise MinitronError("A model is named twice; name each one once.")
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    evaluations = evaluate_folders(
        models,
        text=text,
        against=against,
        tasks=names,
        task_limit=task_limit,
        sequence_length=sequence_length,
        samples=samples,
        batch_size=batch_size,
        dtype=str(dtype),
        device=device,
        speed=speed,
        progress=show.bar,
    )
    if not as_json:
        show.table("", ["", *labels(models)], rows(evaluations))
        show.line(f"Quality: {evaluations[0].quality.tokens:,} tokens of {text}, sequences of {sequence_length:,}.")
        if (timed := evaluations[0].speed) is not None:
            show.line(
                f"Speed and memory: {dtype} on {timed.device}, batch 1, prompt of {sequence_length:,} tokens, medians "
                "after a warm-up, each model in a process of its own."
            )
        return
    settings = {
        "tasks": names,
        "task_limit": task_limit,
        "sequence_length": sequence_length,
        "samples": samples,
        "batch_size": batch_size,
        "dtype": str(dtype),
        "device": device,
        "timed_on": evaluations[0].speed.device if evaluations[0].speed else None,
    }
    inputs = {"models": models, "against": against, "text": {"path": text, "sha256": text_hash(text)}}
    results = {str(evaluation.model): evaluation.to_json() for evaluation in evaluations}
    show.document(show.run_document(None, inputs, settings, results, time.monotonic() - started))


def labels(models: Sequence[Path]) -> list[str]:
    """A short name for each folder: its own where no other is called the same, else the whole path."""
    names = [model.resolve().name for model in models]
    return [name if names.count(name) == 1 else str(model) for name, model in zip(names, models, strict=True)]


def rows(evaluations: Sequence[Evaluation]) -> list[list[show.Cell]]:
    """The table's rows: a measure, then its value for each model; a measure that no model has is left out."""
    columns = [_column(evaluation) for evaluation in evaluations]
    measures = dict.fromkeys(measure for column in columns for measure in column)
    table: list[list[show.Cell]] = [[measure, *(column.get(measure) for column in columns)] for measure in measures]
    return [row for row in table if any(value is not None for value in row[1:])]


def _column(evaluation: Evaluation) -> dict[str, show.Cell]:
    quality, promised = evaluation.quality, evaluation.promised or {}
    column: dict[str, show.Cell] = {
        "perplexity": quality.perplexity,
        "KL to teacher (nats)": quality.kl_to_teacher,
        "top-1 agreement": None if quality.top1_agreement is None else f"{quality.top1_agreement:.1%}",
        "parameters, promised": promised.get("parameters"),
        "parameters, measured": evaluation.parameters,
        "weights, promised": format_bytes(promised["weight_bytes"]) if "weight_bytes" in promised else None,
        "weights, measured": format_bytes(evaluation.weight_bytes),
    }
    if evaluation.speed is not None:
        column["prefill tokens/s"] = evaluation.speed.prefill_tokens_per_s
        column["decode tokens/s"] = evaluation.speed.decode_tokens_per_s
        column["peak memory"] = format_bytes(evaluation.speed.peak_memory)
    for task, metrics in evaluation.tasks.items():
        for metric, value in metrics.items():
            if "_stderr" not in metric:
                error = metrics.get(_standard_error(metric))
                column[f"{task} {metric}"] = f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
    return column


def _standard_error(metric: str) -> str:
    """acc -> acc_stderr; acc,strict -> acc_stderr,strict: as lm-eval names it."""
    name, comma, filter_name = metric.partition(",")
    return f"{name}_stderr{comma}{filter_name}"
