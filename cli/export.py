"""`minitron export`: a checkpoint as one GGUF file, which llama.cpp runs.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "tensors", "parameters",
"weight_bytes" (of all tensors, without the file's padding), "file_bytes" and "types" ({type of ggml: how many
tensors}).  Without --output nothing is written, and results hold "weight_bytes" alone.
"""

import time
from typing import Final

import typer

from cli import show
from cli.option_groups import Group, Option, takes
from cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    OverwriteOption,
    SequenceLengthOption,
    assignments,
    option,
)
from minitron.memory.ggml import MIXTURES
from minitron.units import format_bytes, format_parameters
from pipeline.exporting import Export, count
from pipeline.exporting import export as exported

EXPORT: Final[dict[str, Option | Group]] = {
    "model": Option.of(ModelArgument),
    "output": Option(
        typer.Option(
            "--output",
            "-o",
            help="Where to write the result, a GGUF file; without it: its bytes, counted from config.json.",
            metavar="PATH",
            show_default=False,
        )
    ),
    "type": Option(
        typer.Option(
            "--format",
            help=f"Number format of the weights to write, a type of llama.cpp: {', '.join(MIXTURES)}.",
            metavar="FORMAT",
        )
    ),
    "keep": Option(
        option(
            "--keep",
            "Number format of one part of the model: ssm=q5_k, moe_routed=iq2_xxs. Repeatable.",
            "PART=FORMAT",
        ),
        type=list[str] | None,
        default=None,
        read=assignments("--keep", "ssm=q5_k"),
    ),
    "data": Option(
        option(
            "--data",
            "Text, of which an importance matrix is computed, which types of about two bits need and others gain by: "
            "a .txt, .jsonl, .json, .csv or .parquet file, or a folder.",
            "FILE",
        )
    ),
    "samples": Option(option("--samples", "Samples to read at most: sequences of text.", "COUNT")),
    "sequence_length": Option.of(SequenceLengthOption),
    "device": Option.of(DeviceOption),
    "overwrite": Option.of(OverwriteOption),
}
"""Field of pipeline.exporting.Export -> how it is typed."""


@takes("request", Export, EXPORT)
def command(request: Export, as_json: JsonOption = False) -> None:
    """Write a checkpoint as a GGUF file for llama.cpp, in its own number formats."""
    started = time.monotonic()
    if request.output is None:
        size = count(request)
        if as_json:
            results = {"weight_bytes": size}
            seconds = time.monotonic() - started
            show.document(show.run_document(None, {"model": request.model}, {"type": request.type}, results, seconds))
        else:
            show.line(f"Tensors in {request.type}: {size:,} B ({format_bytes(size)})")
        return
    found = exported(request, progress=show.bar, note=show.note)
    if as_json:
        seconds = time.monotonic() - started
        inputs = {name: getattr(request, name) for name in ("model", "data")}
        show.document(show.run_document(request.output, inputs, request.settings, found.to_json(), seconds))
        return
    kinds = ", ".join(f"{count} {name}" for name, count in found.types.items())
    show.line(f"Tensors: {found.tensors} ({kinds})")
    show.line(
        f"Written: {request.output}, {format_parameters(found.parameters)} parameters, "
        f"{format_bytes(found.weight_bytes)} of weights in {request.type}"
    )
