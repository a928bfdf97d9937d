"""`minitron judge`: a student's answers against its teacher's by a judge, and how good the judge is.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results are those of results.json:
"student", "teacher", "judge"; "verdict" {"contests", "wins", "ties", "losses", "broken" (each {"count", "value",
"interval"}), "margin", "orders_agree", "took_the_first", "by_group", "by_quality", ...}; "answers"; "tokens".  With
--benchmark: "judge", "layout", and "two_turns", "one_turn" {"pairs", "accuracy", "right_in_both_orders", "by_group"..}.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import show
from cli.option_groups import Group, Option, takes
from cli.options import ON_THE_HUB, JsonOption, OutputOption, OverwriteOption, option
from cli.ruling import ANSWERING, ENDPOINT, RULING
from judge.speaking import Speaking
from minitron.errors import MinitronError
from pipeline.benchmarking import Benchmarking, Turns, benchmark
from pipeline.judging import PAGE, TRANSCRIPTS, Judging, Ruling, judge

JUDGING: Final[dict[str, Option | Group]] = {
    "student": Option(
        typer.Argument(
            help=f"Model whose answers are judged: a checkpoint folder, {ON_THE_HUB}, {ENDPOINT}.",
            metavar="STUDENT",
            show_default=False,
        ),
        type=str | None,
        default=None,
    ),
    "teacher": Option(
        option("--teacher", "Teacher: the model that it is compared with, named in the same ways.", "MODEL")
    ),
    "prompts": Option(
        option(
            "--prompts",
            "Prompts: .jsonl, .json, .csv or .parquet with `prompt`, `messages` or `instruction`, or a folder.",
            "FILE",
        ),
        type=Path | None,
        default=None,
    ),
    "answers_student": Option(
        option("--answers-student", "Answers of the student, as `answer` in the order of the prompts.", "FILE")
    ),
    "answers_teacher": Option(option("--answers-teacher", "Answers of the teacher.", "FILE")),
    "samples": Option(
        option("--samples", "Samples to read at most: prompts, or rows of a benchmark, spread over the file.", "COUNT")
    ),
    "answering": Group(Speaking, ANSWERING),
    "ruling": Group(Ruling, RULING),
    "report": Option(
        option("--report", "Report folder to add the outcome to, of `minitron plan` or `compress`.", "FOLDER")
    ),
    "output": Option.of(OutputOption),
}
"""Field of pipeline.judging.Judging -> how it is typed."""

BenchmarkOption = Annotated[
    Path | None,
    option(
        "--benchmark",
        "Judge the judge instead: preference pairs in the layout of RewardBench, RM-Bench, RMB or HelpSteer3.",
        "FILE",
    ),
]
TurnsOption = Annotated[
    Turns,
    typer.Option("--turns", help="How often the judge of --benchmark reads: twice, once, or it is tried in both."),
]


@takes("given", Judging, JUDGING, build=dict)
def command(
    given: dict[str, Any],
    benchmark_file: BenchmarkOption = None,
    turns: TurnsOption = "both",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a student's answers with its teacher's by a judge that reads twice, in both orders."""
    started = time.monotonic()
    request: Judging | Benchmarking
    if benchmark_file is not None:
        compared = ("student", "teacher", "prompts", "answers_student", "answers_teacher", "report")
        if strange := [name for name in compared if given[name] is not None]:
            raise MinitronError(f"--benchmark tries the judge alone; drop {_FLAGS[strange[0]]}.")
        shared = {name: given[name] for name in ("output", "ruling", "samples")}
        request = Benchmarking(benchmark_file, turns=turns, **shared)
        results = benchmark(request, overwrite=overwrite, progress=show.bar, note=show.note).to_json()
        inputs: dict[str, Any] = {"benchmark": benchmark_file}
    else:
        if given["prompts"] is None:
            raise MinitronError("there is nothing to answer; give --prompts FILE, or --benchmark FILE.")
        request = Judging(**given)
        results = judge(request, overwrite=overwrite, progress=show.bar, note=show.note).to_json()
        inputs = {name: given[name] for name in ("prompts", "answers_student", "answers_teacher")}
    if as_json:
        seconds = time.monotonic() - started
        show.document(show.run_document(request.output, inputs, request.settings, results, seconds))
    elif benchmark_file is not None:
        _print_accuracy(results)
    else:
        print_verdict(results)
        show.line(f"Both orders of every pair: {request.output / TRANSCRIPTS}")
        show.line(f"The report: {request.output / PAGE}")


_FLAGS: Final = {
    "student": "STUDENT",
    "teacher": "--teacher",
    "prompts": "--prompts",
    "answers_student": "--answers-student",
    "answers_teacher": "--answers-teacher",
    "report": "--report",
}


def print_verdict(results: Mapping[str, Any]) -> None:
    """The shares, and what else came of it."""
    from minitron.report.judged import COLUMNS, judged_document, rows, sentences  # which imports numpy

    judged = judged_document(results, [])
    show.table("Share of pairs, with 95 % intervals", list(COLUMNS), rows(judged))
    for one in sentences(judged):
        show.paragraph(one)


def _print_accuracy(results: Mapping[str, Any]) -> None:
    tried = {
        name: results[key] for name, key in (("two turns", "two_turns"), ("one turn", "one_turn")) if key in results
    }
    groups = next(iter(tried.values()))["by_group"]
    table: list[list[show.Cell]] = [
        ["all pairs", *(_shown(found["accuracy"]) for found in tried.values())],
        ["right in both orders", *(_shown(found["right_in_both_orders"]) for found in tried.values())],
        *([name, *(_shown(found["by_group"][name]["accuracy"]) for found in tried.values())] for name in groups),
    ]
    pairs = next(iter(tried.values()))["pairs"]
    show.table(
        f"{results['judge']} on {pairs:,} pairs of {results['layout']}: accuracy in both orders, broken formats wrong",
        ["", *tried],
        table,
    )
    for name, found in tried.items():
        if found["broken_verdicts"]:
            show.line(f"With {name} {found['broken_verdicts']:,} of {found['verdicts']:,} verdicts were broken.")


def _shown(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['value']:.1%} ({low:.1%} to {high:.1%})"
