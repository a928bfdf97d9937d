"""`minitron compress`: score, plan, prune, distill and evaluate, in a run folder that goes on where it was stopped.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "steps": {step: {"seconds",
"results"}} and "models": {"teacher", "pruned", "distilled"}, each as `minitron eval` gives it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.cutting import Cutting, takes_cutting
from cli.option_groups import spread_options
from cli.options import (
    ComputeDtype,
    DataOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    Precision,
    SpeedOption,
    TeacherPrecisionOption,
    count_option,
)
from cli.planning import Planning, takes_planning
from cli.scoring import Scoring, takes_scoring
from cli.searching import Searching, takes_searching
from minitron.errors import MinitronError
from minitron.units import format_bytes
from pipeline.chain import DISTILLED, REPORT, Chain, run_chain

if TYPE_CHECKING:
    from distill.recipe import Recipe


def _count(flag: str, help: str) -> Any:
    return typer.Option(flag, parser=count_option, help=help, metavar="TOKENS")


@dataclasses.dataclass(frozen=True)
class Training:
    """How to distil, as typed."""

    tokens: Annotated[int, _count("--tokens", "Tokens to distil on.")] = 2**20
    distill_sequence_length: Annotated[
        int, _count("--distill-sequence-length", "Tokens of one sequence of the distillation.")
    ] = 512
    batch_tokens: Annotated[int, _count("--batch-tokens", "Tokens of one optimiser step.")] = 4096
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest; a tenth of it at the end.")] = (
        1e-4
    )
    precision: Annotated[
        ComputeDtype, typer.Option("--precision", help="bf16: matmuls in bf16 over fp32 weights; fp32: everything.")
    ] = ComputeDtype.BF16
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed of every random choice.")] = 0

    @property
    def recipe(self) -> "Recipe":
        """The same for distill; raises MinitronError for settings that contradict each other."""
        from distill.recipe import Recipe

        return Recipe(
            tokens=self.tokens,
            sequence_length=self.distill_sequence_length,
            batch_tokens=self.batch_tokens,
            learning_rate=self.learning_rate,
            precision=self.precision.value,
            seed=self.seed,
        )


def takes_training(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `training` spread out into the options of Training, as typer reads them."""
    return spread_options(function, "training", Training)


HeldOutOption = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Held-out text for the evaluation; the end of --data is kept back for it where none is given.",
        metavar="FILE",
        show_default=False,
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text for scores, where it is not --data.", metavar="FILE", show_default=False),
]


@takes_planning
@takes_searching
@takes_scoring
@takes_cutting
@takes_training
def command(
    model: ModelArgument,
    data: DataOption,
    output: OutputOption,
    planning: Planning,
    searching: Searching,
    scoring: Scoring,
    cutting: Cutting,
    training: Training,
    text: HeldOutOption = None,
    calibration: CalibrationOption = None,
    teacher_precision: TeacherPrecisionOption = Precision.BF16,
    speed: SpeedOption = True,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do it all: score, plan, prune, distill and evaluate. Run it again to go on after a stop."""
    started = time.monotonic()
    planning.budget_of_device()
    if scoring.offload and searching.measures:
        raise MinitronError(
            "--offload scores a model that memory does not hold, but candidates are measured in memory; "
            "give --evaluate 0 with it, or leave it out."
        )
    chain = Chain(
        folder=output,
        model=model,
        planning=planning,
        searching=searching,
        cutting=cutting,
        calibration=calibration or data,
        training=data,
        heldout=text,
        recipe=training.recipe,
        teacher_precision=teacher_precision.value,
        device=device,
        scoring=scoring.arguments,
        evaluating={"sequence_length": training.distill_sequence_length, "speed": speed},
        settings={
            "planning": planning.settings,
            "searching": searching.settings,
            "scoring": scoring.settings,
            "cutting": cutting.settings,
            "training": training.recipe.to_json(),
            "teacher_precision": teacher_precision.value,
        },
    )
    results = run_chain(chain, progress=show.bar, note=show.note, overwrite=overwrite)
    if as_json:
        inputs = {"model": model, "data": data, "text": text, "calibration": calibration}
        show.document(show.run_document(output, inputs, chain.settings, results, time.monotonic() - started))
        return
    print_models(results["models"])
    show.line(f"The report: {output / REPORT}")
    show.line(f"The compressed model: {output / DISTILLED}")


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
