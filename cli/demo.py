"""`minitron demo`: `compress` on the model that comes with Minitron, in minutes on a laptop."""

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import show
from cli.compress import print_outcome
from cli.invocation import command_line
from cli.options import JsonOption, OverwriteOption
from cli.prune import print_cut
from distill.recipe import Recipe
from importance.score.options import ScoringOptions
from minitron import builtin
from minitron.measure.options import EvaluationOptions
from minitron.units import format_bytes
from pipeline.chain import compress
from pipeline.compression import PLAN, PRUNED, Compression
from pipeline.planning import Planning
from pipeline.searching import Searching

CONTEXT: Final = 2048
BATCH_TOKENS: Final = 4096
LEARNING_RATE: Final = 1e-3
"""Ten times that of models with billions of parameters: small models train with larger learning rates."""

SEQUENCE_LENGTH: Final = 512

SCORING: Final = ScoringOptions(
    samples=64, sequence_length=SEQUENCE_LENGTH, batch_size=4, layer_samples=2, dtype="fp32"
)
"""In fp32, as all else here: CPUs without bf16 matrix units multiply faster in fp32."""

SEARCHING: Final = Searching(evaluate=12, combinations=16, trial_samples=8, finalists=2)
"""Half of what `compress` measures: enough for a model whose candidates differ as much as these."""

EVALUATION: Final = EvaluationOptions(sequence_length=SEQUENCE_LENGTH, samples=48, batch_size=4, dtype="fp32")


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the result: the run folder.", metavar="PATH")
    ] = Path("minitron-demo"),
    share: Annotated[
        float, typer.Option("--share", min=0.3, max=1.0, help="Share of the original memory to keep.")
    ] = 0.65,
    tokens: Annotated[
        int, typer.Option("--tokens", min=BATCH_TOKENS, help="Tokens to train on.", metavar="TOKENS")
    ] = 150_000,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress the built-in 6.7M-parameter hybrid by a third and distil it, in a few minutes."""
    from minitron.memory.footprint import footprint
    from minitron.memory.workload import workload_of
    from minitron.model.spec import read_spec

    started = time.monotonic()
    spec = read_spec(builtin.MODEL)
    whole = footprint(spec, workload_of(spec, CONTEXT)).total
    request = _request(output, int(whole * share), tokens)
    show.note(
        f"The built-in model needs {format_bytes(whole)} for {CONTEXT:,} tokens; the budget is "
        f"{format_bytes(whole * share)}."
    )
    found = compress(request, overwrite=overwrite, progress=show.bar, note=show.note)
    if as_json:
        inputs = {"model": builtin.MODEL, "data": builtin.DISTILL, "text": builtin.HELDOUT}
        seconds = time.monotonic() - started
        show.document(show.run_document(output, inputs, request.settings, found.to_json(), seconds))
        return
    _tell(output)
    print_outcome(found)


def _request(output: Path, budget: int, tokens: int) -> Compression:
    """The request, with settings for a small model on a CPU."""
    return Compression(
        model=builtin.MODEL,
        output=output,
        data=builtin.DISTILL,
        calibration=builtin.CALIBRATION,
        heldout=builtin.HELDOUT,
        planning=Planning(budget=budget, context=CONTEXT),
        searching=SEARCHING,
        scoring=SCORING,
        recipe=Recipe(
            tokens=tokens,
            sequence_length=SEQUENCE_LENGTH,
            batch_tokens=BATCH_TOKENS,
            learning_rate=LEARNING_RATE,
            precision="fp32",
            validate_every=max(1, tokens // BATCH_TOKENS // 4),
            validation_sequences=16,
        ),
        evaluation=EVALUATION,
        command=command_line(),
    )


def _tell(run: Path) -> None:
    """What was cut."""
    from minitron.cut.plan import load_plan
    from minitron.model.spec import read_spec

    print_cut(read_spec(builtin.MODEL), read_spec(run / PRUNED), load_plan(run / PLAN))
