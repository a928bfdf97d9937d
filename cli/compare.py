"""`minitron compare`: several models, or one model on several GPUs, in one table.

The document of --json: {"settings", "rows": [{"model", "gpu", "parameters", "weights_bytes", "cache_bytes",
"total_bytes", "available_bytes", "fits", "longest_context_tokens", "largest_batch_sequences",
"estimated_output_tokens_per_s", "cautions"}, ...]}.  A context or batch that nothing limits is null, and so is the
speed of what does not fit or of a GPU of which only the memory is known.
"""

from pathlib import Path
from typing import Annotated

import typer

from cli import show
from cli.option_groups import takes
from cli.options import GPU_HELP, ON_THE_HUB, JsonOption, complete_gpu, model_path, option
from cli.serving import SERVING
from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters
from pipeline.comparison import Comparison
from pipeline.comparison import compare as compared
from pipeline.serving import Serving

GpusOption = Annotated[list[str], option("--gpu", f"{GPU_HELP}. Repeatable.", "GPU", autocompletion=complete_gpu)]
PlannedModelsArgument = Annotated[
    list[Path],
    typer.Argument(
        help=f"Checkpoint folders, config.json files, or {ON_THE_HUB}.",
        metavar="MODEL...",
        show_default=False,
        parser=model_path,
    ),
]


@takes("serving", Serving, SERVING)
def command(models: PlannedModelsArgument, gpus: GpusOption, serving: Serving, as_json: JsonOption = False) -> None:
    """Compare models and GPUs: memory, whether it fits, longest context, largest batch. Reads no weights."""
    rows = compared(models, gpus, serving)
    if as_json:
        show.document({"settings": serving.settings, "rows": [row.to_json() for row in rows]})
        return
    _print(rows, serving)


def _print(rows: list[Comparison], serving: Serving) -> None:
    if not rows:
        raise MinitronError("there is nothing to compare; give at least one model and one --gpu.")
    cells: list[list[show.Cell]] = [
        [
            each.model,
            each.gpu,
            format_parameters(each.parameters),
            format_bytes(each.weights_bytes),
            format_bytes(each.cache_bytes),
            format_bytes(each.total_bytes),
            format_bytes(each.available_bytes - each.total_bytes),
            _reach(each.longest_context_tokens),
            _reach(each.largest_batch_sequences),
            each.estimated_output_tokens_per_s,
        ]
        for each in rows
    ]
    context = "each model's longest context" if serving.context is None else f"{serving.context:,} tokens"
    title = f"{context[0].upper()}{context[1:]} x {serving.batch:,}; engine {serving.engine}"
    columns = ["model", "GPU", "parameters", "weights", "caches", "total", "to spare", "longest", "batch", "output/s"]
    show.table(title, columns, cells)
    show.paragraph("output/s: output tokens per second, estimated by roofline (docs/speed.md).")
    for caution in dict.fromkeys(caution for each in rows for caution in each.cautions):
        show.paragraph(f"Note: {caution}")


def _reach(most: int | None) -> str:
    return "unlimited" if most is None else f"{most:,}"
