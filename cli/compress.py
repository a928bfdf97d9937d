"""`minitron compress`: score, plan, prune, distill and evaluate, in a run folder from which a stopped run resumes.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "steps": {step: {"seconds",
"results"}} and "models": {"teacher", "pruned", "distilled"}, each as `minitron eval` gives it,
and "serve": the engine's command, empty without `--engine`.  Of several budgets they hold
"members": {folder: the same}.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import typer

from cli import show
from cli.cutting import CUTTING
from cli.dry_run import DryRunOption, tell
from cli.invocation import command_line, settings_in
from cli.option_groups import Group, Option, takes
from cli.options import (
    DataOption,
    DequantiseOption,
    DeviceOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    ScoresOption,
    SpeedOption,
    TeacherPrecisionOption,
    WeightsArgument,
    bytes_option,
    option,
    parameters_option,
)
from cli.planning import PLANNING
from cli.scoring import SCORING
from cli.searching import SEARCHING
from cli.training import COMPRESSION as TRAINING
from distill.recipe import Recipe
from importance.score.options import ScoringOptions
from minitron.measure.options import EvaluationOptions
from minitron.units import format_bytes
from pipeline.chain import Compressed, compress
from pipeline.compression import Compression
from pipeline.cutting import Cutting
from pipeline.family import Family, compress_family
from pipeline.planning import Planning
from pipeline.rehearsals import rehearse_compress
from pipeline.searching import Searching

COMPRESSION: Final[dict[str, Option | Group]] = {
    "model": Option.of(WeightsArgument),
    "data": Option.of(DataOption),
    "output": Option.of(OutputOption),
    "planning": Group(Planning, {name: row for name, row in PLANNING.items() if name not in ("budget", "params")}),
    "budgets": Option(
        option(
            "--budget",
            "Total memory, instead of --gpu: 8MiB. Repeatable: a model for each, from one scoring, in its own folder.",
            "SIZE",
            parser=bytes_option,
        ),
        type=list[int] | None,
        default=None,
        read=lambda typed: tuple(typed or ()),
    ),
    "params": Option(
        option("--params", "Most parameters: 7B. Repeatable, as --budget is.", "N", parser=parameters_option),
        type=list[int] | None,
        default=None,
        read=lambda typed: tuple(typed or ()),
    ),
    "scores": Option.of(ScoresOption),
    "searching": Group(Searching, SEARCHING),
    "scoring": Group(ScoringOptions, {name: row for name, row in SCORING.items() if name not in ("dtype", "seed")}),
    "cutting": Group(Cutting, CUTTING),
    "recipe": Group(Recipe, TRAINING),
    "heldout": Option(
        option(
            "--text",
            "Held-out text, for the evaluation; default: the end of --data is held out.",
            "FILE",
        )
    ),
    "calibration": Option(option("--calibration", "Calibration text for scoring; default: --data.", "FILE")),
    "teacher_precision": Option.of(TeacherPrecisionOption),
    "form": Option(
        option(
            "--format",
            "Number format of the weights to write, in which the model is distilled and for which it is planned: int4, "
            "int8, nvfp4, fp8 and others of `minitron quantize`; --keep names parts in another one.",
            "FORMAT",
        )
    ),
    "steps_of": Option(
        typer.Option(
            "--steps-of",
            help="Share of the parameters that one cut takes, at most: a larger one is made in several, with "
            "distillation between, such as 0.3; default: one cut.",
            metavar="SHARE",
            show_default=False,
        )
    ),
    "evaluation": Group(EvaluationOptions, {"speed": Option.of(SpeedOption)}),
    "dequantise": Option.of(DequantiseOption),
    "device": Option.of(DeviceOption),
}
"""Field of pipeline.compression.Compression -> how it is typed."""


def _request(**values: Any) -> Compression:
    """The request from what was typed: one seed, and one number format to compute in, for all steps."""
    recipe, scoring, evaluation = values["recipe"], values["scoring"], values["evaluation"]
    values["scoring"] = replace(scoring, dtype=recipe.precision, seed=recipe.seed)
    values["evaluation"] = replace(evaluation, dtype=recipe.precision, sequence_length=recipe.sequence_length)
    return Compression(**values)


@takes("request", Compression, COMPRESSION, build=_request)
def command(
    request: Compression,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole chain: score, plan, prune, distill and evaluate. Run it again to resume after a stop."""
    started = time.monotonic()
    request = replace(request, command=command_line(), config=settings_in(request.output))
    inputs = {
        "model": request.model,
        "data": request.data,
        "text": request.heldout,
        "calibration": request.calibration,
        "scores": request.scores,
    }
    if dry_run:
        found = rehearse_compress(request, overwrite=overwrite)
        tell(found, request.output, inputs, request.settings, as_json=as_json)
        return
    how = compress_family if request.plannings else compress
    done = how(request, overwrite=overwrite, progress=show.bar, note=show.note)
    if as_json:
        seconds = time.monotonic() - started
        show.document(show.run_document(request.output, inputs, request.settings, done.to_json(), seconds))
        return
    for name, member in done.members.items() if isinstance(done, Family) else [("", done)]:
        if name:
            show.line(f"{name}:")
        print_outcome(member)


def print_outcome(found: Compressed) -> None:
    """The quality of the models, where report and model are, and what serves it."""
    for name, cut in found.cuts.items():
        pruned, trained = (cut["steps"][step]["results"] for step in ("prune", "distill"))
        show.line(
            f"{name}: {pruned['parameters']:,} parameters; KL {trained['kl_before']:.4f}, and "
            f"{trained['kl_after']:.4f} after {trained['tokens']:,} tokens"
        )
    print_models(found.models)
    show.line(f"The report: {found.report}")
    show.line(f"The compressed model: {found.distilled}")
    if found.serve:
        show.line(f"Serve it: {found.serve}")


def print_models(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Teacher, pruned and distilled side by side."""
    rows: list[list[show.Cell]] = [
        [
            name,
            found["parameters"],
            format_bytes(found["weight_bytes"]),
            found["perplexity"],
            found["kl_to_teacher"],
            _percent(found["top1_agreement"]),
            found["prefill_tokens_per_s"],
            found["decode_tokens_per_s"],
        ]
        for name, found in models.items()
    ]
    columns = ["model", "parameters", "weights", "perplexity", "KL", "top-1", "prefill/s", "decode/s"]
    show.table("On held-out text; KL in nats and top-1 agreement against the teacher", columns, rows)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
