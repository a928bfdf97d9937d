"""`minitron demo`: the whole job on the model that ships with Minitron, in minutes on a laptop."""

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import show
from cli.compress import print_models
from cli.cutting import Cutting
from cli.options import JsonOption, OverwriteOption
from cli.planning import Planning
from cli.searching import Searching
from minitron.units import format_bytes
from pipeline.chain import DISTILLED, PLAN, PRUNED, REPORT, Chain, run_chain

CONTEXT: Final = 2048
BATCH_TOKENS: Final = 4096
LEARNING_RATE: Final = 1e-3
"""Ten times what suits a model of billions: one of millions, whose matrices are small, takes larger steps."""

SEQUENCE_LENGTH: Final = 512
DTYPE: Final = "fp32"
"""Processors without bf16 matrix units multiply fp32 faster."""

SCORING: Final = {
    "samples": 64,
    "sequence_length": SEQUENCE_LENGTH,
    "batch_size": 4,
    "layers": "iterative",
    "layer_samples": 2,
    "dtype": DTYPE,
}
SEARCHING: Final = Searching(evaluate=12, combinations=16, judge_samples=8, finalists=2)
"""Half of what `compress` measures: enough for a model whose candidates differ as much as these."""

EVALUATION: Final = {"sequence_length": SEQUENCE_LENGTH, "samples": 48, "batch_size": 4, "dtype": DTYPE}


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.", metavar="PATH")] = Path(
        "minitron-demo"
    ),
    keep: Annotated[
        float, typer.Option("--keep", min=0.3, max=1.0, help="The share of the memory that may be used afterwards.")
    ] = 0.65,
    tokens: Annotated[int, typer.Option("--tokens", min=BATCH_TOKENS, help="Tokens to distil on.")] = 150_000,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress the built-in 6.7M-parameter hybrid by a third and distil it, in a few minutes."""
    from distill.recipe import Recipe
    from minitron import builtin
    from minitron.memory.footprint import footprint
    from minitron.memory.workload import workload_of
    from minitron.model.spec import read_spec

    started = time.monotonic()
    spec = read_spec(builtin.MODEL)
    whole = footprint(spec, workload_of(spec, CONTEXT)).total
    planning = Planning(budget=int(whole * keep), context=CONTEXT)
    recipe = Recipe(
        tokens=tokens,
        sequence_length=SEQUENCE_LENGTH,
        batch_tokens=BATCH_TOKENS,
        learning_rate=LEARNING_RATE,
        precision=DTYPE,
        validate_every=max(1, tokens // BATCH_TOKENS // 4),
        validation_sequences=16,
    )
    show.note(
        f"The built-in model needs {format_bytes(whole)} for {CONTEXT:,} tokens; "
        f"it is to fit {format_bytes(whole * keep)}."
    )
    chain = Chain(
        folder=output,
        model=builtin.MODEL,
        planning=planning,
        searching=SEARCHING,
        cutting=Cutting(),
        calibration=builtin.CALIBRATION,
        training=builtin.DISTILL,
        heldout=builtin.HELDOUT,
        recipe=recipe,
        scoring=SCORING,
        evaluating=EVALUATION,
        settings={
            "planning": planning.settings,
            "searching": SEARCHING.settings,
            "scoring": SCORING,
            "training": recipe.to_json(),
        },
    )
    results = run_chain(chain, progress=show.bar, note=show.note, overwrite=overwrite)
    if as_json:
        inputs = {"model": builtin.MODEL, "data": builtin.DISTILL, "text": builtin.HELDOUT}
        show.document(show.run_document(output, inputs, chain.settings, results, time.monotonic() - started))
        return
    _tell(output)
    print_models(results["models"])
    show.line(f"The report: {output / REPORT}")
    show.line(f"The compressed model: {output / DISTILLED}")


def _tell(run: Path) -> None:
    """What was cut."""
    from cli.prune import print_cut
    from minitron import builtin
    from minitron.cut.plan import load_plan
    from minitron.model.spec import read_spec

    print_cut(read_spec(builtin.MODEL), read_spec(run / PRUNED), load_plan(run / PLAN))
