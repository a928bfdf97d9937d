"""`minitron eval`: checkpoints side by side, promised and measured sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import show
from cli.option_groups import Group, Option, takes
from cli.options import (
    ON_THE_HUB,
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelsArgument,
    SamplesOption,
    SequenceLengthOption,
    SpeedOption,
    TextOption,
    model_path,
    option,
    words,
)
from cli.ruling import ENDPOINT
from minitron.errors import MinitronError
from minitron.measure.cache_options import CacheOptions
from minitron.measure.options import EvaluationOptions
from minitron.quantise.rows import formats_that_round
from minitron.units import format_bytes
from pipeline.evaluation import evaluate
from pipeline.serving import model_names

if TYPE_CHECKING:
    from minitron.measure.caches import CacheQuality
    from minitron.measure.evaluate import Evaluation
    from pipeline.judging import Judgement

AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--teacher",
        help=f"Teacher: a checkpoint folder, or {ON_THE_HUB}. Adds KL divergence and top-1 agreement.",
        metavar="MODEL",
        parser=model_path,
    ),
]

JudgeOption = Annotated[
    str | None,
    option(
        "--judge",
        f"Judge of the answers beside the teacher's: a checkpoint folder, {ON_THE_HUB}, {ENDPOINT}. `minitron judge` "
        "has more options.",
        "JUDGE",
    ),
]
PromptsOption = Annotated[Path | None, option("--prompts", "Prompts, for --judge: a file or a folder.", "FILE")]
JudgingsOption = Annotated[
    Path | None, option("--judge-output", "Folder for what --judge leaves, which goes on after a stop.", "FOLDER")
]

AnswerTokensOption = Annotated[
    int, typer.Option("--answer-tokens", min=1, help="Tokens of an answer at most, to --prompts.")
]

CACHES: Final[dict[str, Option]] = {
    "kv": Option(
        option(
            "--kv",
            "Number format of keys and values, of which is measured what it costs: "
            + ", ".join(formats_that_round("kv"))
            + ".",
            "FORMAT",
        )
    ),
    "ssm_state": Option(
        option(
            "--ssm-state",
            "Number format of recurrent states, rounded at every token, of which is measured what it costs: "
            + ", ".join(formats_that_round("state"))
            + ".",
            "FORMAT",
        )
    ),
    "rounding": Option(
        typer.Option("--state-rounding", help="How states are rounded; default: both are measured.", show_default=False)
    ),
    "seed": Option(typer.Option("--seed", min=0, help="Seed of all random choices: of stochastic rounding.")),
}
"""Field of minitron.measure.cache_options.CacheOptions -> how it is typed."""

EVALUATION: Final[dict[str, Option | Group]] = {
    "tasks": Option(
        typer.Option("--tasks", help="lm-eval tasks, comma-separated: names or YAML files.", metavar="TASKS"),
        type=str | None,
        default=None,
        read=words,
    ),
    "task_limit": Option(typer.Option("--task-limit", min=1, help="Items per task at most.")),
    "sequence_length": Option.of(SequenceLengthOption),
    "samples": Option.of(SamplesOption, default=64),
    "batch_size": Option.of(BatchSizeOption),
    "dtype": Option.of(DtypeOption),
    "speed": Option.of(SpeedOption),
    "caches": Group(CacheOptions, CACHES),
}
"""Field of minitron.measure.options.EvaluationOptions -> how it is typed."""


@takes("options", EvaluationOptions, EVALUATION)
def command(
    models: ModelsArgument,
    text: TextOption,
    options: EvaluationOptions,
    against: AgainstOption = None,
    device: DeviceOption = None,
    judge: JudgeOption = None,
    prompts: PromptsOption = None,
    judge_output: JudgingsOption = None,
    answer_tokens: AnswerTokensOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Measure checkpoints on held-out text: perplexity, KL to a teacher, size, speed, memory, lm-eval tasks."""
    from minitron.measure.records import Source

    started = time.monotonic()
    judging = (
        None if judge is None else _judging((judge, against, prompts, judge_output), answer_tokens, options, device)
    )
    evaluations = evaluate(models, text, options, against=against, device=device, progress=show.bar, note=show.note)
    judged = {} if judging is None else judging(models)
    first, length = evaluations[0], options.sequence_length
    if not as_json:
        show.table("", ["", *model_names(models)], [*rows(evaluations), *_judged_rows(models, judged)])
        show.line(f"Quality: {first.quality.tokens:,} tokens of {text}, sequences of {length:,}.")
        if first.caches:
            show.line(_told(options.caches))
        if first.speed is not None:
            show.line(
                f"Speed and memory: {options.dtype} on {first.speed.device}, batch 1, prompt of {length:,} tokens, "
                "medians after a warm-up, each model in a process of its own."
            )
        return
    settings = options.to_json() | {"device": device, "timed_on": first.speed.device if first.speed else None}
    inputs = {"models": models, "against": against, "text": {"path": text, "sha256": Source(str(text)).fingerprint()}}
    results = {
        str(one.model): one.to_json() | ({"judged": judged[one.model].to_json()} if one.model in judged else {})
        for one in evaluations
    }
    show.document(show.run_document(None, inputs, settings, results, time.monotonic() - started))


def _judging(
    given: tuple[str, Path | None, Path | None, Path | None],
    answer_tokens: int,
    options: EvaluationOptions,
    device: str | None,
) -> Callable[[Sequence[Path]], dict[Path, Judgement]]:
    """What judges models; raises MinitronError, before anything is measured, where something is missing for it."""
    from judge.speaking import Speaking
    from pipeline.judging import Ruling, judge_models

    judge, against, prompts, output = given
    if against is None or prompts is None or output is None:
        missing = (
            "--teacher MODEL" if against is None else "--prompts FILE" if prompts is None else "--judge-output FOLDER"
        )
        raise MinitronError(f"--judge compares the answers with a teacher's; give {missing} too.")
    ruling = Ruling(judge, dtype=options.dtype, device=device)
    return partial(
        judge_models,
        against=against,
        prompts=prompts,
        ruling=ruling,
        output=output,
        answering=Speaking(max_tokens=answer_tokens),
        progress=show.bar,
        note=show.note,
    )


def _judged_rows(models: Sequence[Path], judged: Mapping[Path, Judgement]) -> list[list[show.Cell]]:
    """What share of its answers a judge likes better than the teacher's, and so on."""
    found = [judged[model].results if model in judged else None for model in models]
    verdicts = [None if one is None else one["verdict"] for one in found]
    rows: list[list[show.Cell]] = [
        [f"judge: {name}", *(None if one is None else f"{one[name]['value']:.1%}" for one in verdicts)]
        for name in ("wins", "ties", "losses", "broken")
    ]
    lengths = [None if one is None or one["tokens"] is None else f"{one['tokens']['ratio']:.2f}" for one in found]
    return [*rows, ["tokens to answer, times the teacher's", *lengths]] if judged else []


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
    for cache in evaluation.caches:
        column |= _cache_rows(cache)
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


def _cache_rows(cache: CacheQuality) -> dict[str, show.Cell]:
    kept = [f"KV {cache.kv}"] * (cache.kv is not None)
    kept += [f"states {cache.ssm_state} {cache.rounding}"] * (cache.ssm_state is not None)
    name = ", ".join(kept)
    return {
        f"{name}: KL (nats)": cache.quality.kl_to_teacher,
        f"{name}: perplexity": f"{cache.quality.perplexity:.4g} ({cache.perplexity_ratio - 1:+.3%})",
    }


def _told(caches: CacheOptions) -> str:
    how = "token by token, states rounded as each is stored" if caches.ssm_state is not None else "in one pass"
    return f"Caches: read {how}, compared with the same model read so with its cache as it is."


def _standard_error(metric: str) -> str:
    """acc -> acc_stderr; acc,strict -> acc_stderr,strict: as lm-eval names it."""
    name, comma, filter_name = metric.partition(",")
    return f"{name}_stderr{comma}{filter_name}"
