"""`minitron quantize`: a checkpoint in fewer bits, in a layout that engines read.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "parameters",
"weight_bytes", "planned_bytes" (what `plan --weights` counts), "source_weight_bytes", "formats" ({format: matrices})
and "left" ({matrix that stays in 16 bits: why}).
"""

import time
from typing import Final

from cli import show
from cli.dry_run import DryRunOption, tell
from cli.option_groups import Group, Option, takes
from cli.options import (
    DeviceOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    SequenceLengthOption,
    WeightsArgument,
    assignments,
    option,
)
from minitron.memory.formats import FORMATS
from minitron.quantise.wanted import KV_FORMATS, written_formats
from minitron.units import format_bytes, format_parameters
from pipeline.quantising import Quantising
from pipeline.quantising import quantise as quantised
from pipeline.rehearsals import rehearse_quantise

_FORMATS_HELP: Final = "; ".join(f"{name}: {FORMATS[name].note}" for name in written_formats())

QUANTISING: Final[dict[str, Option | Group]] = {
    "model": Option.of(WeightsArgument),
    "output": Option.of(OutputOption),
    "form": Option(option("--format", f"Number format of the weights to write. {_FORMATS_HELP}.", "FORMAT")),
    "keep": Option(
        option("--keep", "Number format of one part of the model: attention=bf16. Repeatable.", "PART=FORMAT"),
        type=list[str] | None,
        default=None,
        read=assignments("--keep", "attention=bf16"),
    ),
    "kv": Option(
        option(
            "--kv",
            f"Number format of keys and values that the files are made for: {', '.join(KV_FORMATS)}; fp8 needs --data.",
            "FORMAT",
        )
    ),
    "rounding": Option(
        option(
            "--round",
            "How weights are rounded. best: scales are searched and, given --data, every column makes up for what "
            "rounding took from those before it (GPTQ); nearest: each number to the nearest, with scales by the "
            "largest number.",
            "WAY",
        )
    ),
    "data": Option(option("--data", "Text: a .txt, .jsonl, .json, .csv or .parquet file, or a folder.", "FILE")),
    "samples": Option(option("--samples", "Samples to read at most: sequences of text.", "COUNT")),
    "sequence_length": Option.of(SequenceLengthOption),
    "device": Option.of(DeviceOption),
    "overwrite": Option.of(OverwriteOption),
}
"""Field of pipeline.quantising.Quantising -> how it is typed."""


@takes("request", Quantising, QUANTISING)
def command(request: Quantising, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Write a checkpoint in fewer bits, in a layout that vLLM and other engines read."""
    started = time.monotonic()
    inputs = {name: getattr(request, name) for name in ("model", "data")}
    if dry_run:
        tell(rehearse_quantise(request), request.output, inputs, request.settings, as_json=as_json)
        return
    result = quantised(request, progress=show.bar, note=show.note)
    if as_json:
        seconds = time.monotonic() - started
        show.document(show.run_document(request.output, inputs, request.settings, result.to_json(), seconds))
        return
    show.table("Matrices", ["format", "matrices"], [[name, count] for name, count in result.formats.items()])
    share = result.weight_bytes / result.source_weight_bytes
    show.line(
        f"Written: {request.output}, {format_parameters(result.parameters)} parameters, "
        f"{format_bytes(result.weight_bytes)}, {share:.1%} of the source's bytes"
    )
