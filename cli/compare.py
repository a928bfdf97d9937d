"""`minitron compare`: several models, or one model on several GPUs, in one table.

The document of --json: {"settings", "rows": [{"model", "gpu", "parameters", "weights_bytes", "cache_bytes",
"total_bytes", "available_bytes", "fits", "longest_context_tokens", "largest_batch_sequences",
"estimated_output_tokens_per_s", "cautions"}, ...]}.  A context or batch that nothing limits is null, and so is the
speed of what does not fit or of a GPU of which only the memory is known.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.option_groups import spread_options
from cli.options import JsonOption
from cli.serving import Serving, option
from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec

GpusOption = Annotated[
    list[str], option("--gpu", "A GPU's name, or its usable memory, such as 22.06GiB. Repeatable.", "GPU")
]
PlannedModelsArgument = Annotated[
    list[Path],
    typer.Argument(help="Checkpoint folders or config.json files.", metavar="MODEL...", show_default=False),
]


def compare(models: PlannedModelsArgument, gpus: GpusOption, serving: Serving, as_json: JsonOption = False) -> None:
    """Put models, or GPUs, side by side: what each takes, whether it fits, how far it reaches. Reads no weights."""
    from minitron.memory.gpus import find_gpu
    from minitron.model.spec import read_spec

    devices = [find_gpu(name) for name in gpus]
    specs = [read_spec(path) for path in models]
    names = _names(models)
    rows = [row(name, spec, gpu, serving) for name, spec in zip(names, specs, strict=True) for gpu in devices]
    if as_json:
        show.document({"settings": serving.settings, "rows": rows})
        return
    _print(rows, serving)


command = spread_options(compare, "serving", Serving)


def _names(models: list[Path]) -> list[str]:
    """What the models are called: their last folder or file, or the whole path where two share that."""
    short = [path.parent.name if path.name == "config.json" else path.stem or str(path) for path in models]
    return short if len(set(short)) == len(short) else [str(path) for path in models]


def row(name: str, spec: "ModelSpec", gpu: "Gpu", serving: Serving) -> dict[str, Any]:
    """One model on one GPU, sizes in bytes."""
    from minitron.memory.footprint import footprint
    from minitron.memory.questions import UNLIMITED, cautions, largest_batch, largest_context

    budget, workload = serving.budget_of(gpu), serving.workload_on(spec, gpu)
    found = footprint(spec, workload, budget.workspace)
    reach = (largest_context(spec, workload, budget), largest_batch(spec, workload, budget))
    context, batch = (None if most == UNLIMITED else most for most in reach)
    fits = found.total <= budget.available
    states = found.conv_state + found.ssm_state + found.prefix_states
    return {
        "model": name,
        "gpu": gpu.name,
        "parameters": spec.parameters().total,
        "weights_bytes": found.weights,
        "cache_bytes": found.kv_cache + states + found.block_rounding + found.null_block + found.graph_blocks,
        "total_bytes": found.total,
        "available_bytes": budget.available,
        "fits": fits,
        "longest_context_tokens": context,
        "largest_batch_sequences": batch,
        "estimated_output_tokens_per_s": _speed(spec, workload, gpu, serving) if fits else None,
        "cautions": list(cautions(spec, workload, gpu)),
    }


def _speed(spec: "ModelSpec", workload: "Workload", gpu: "Gpu", serving: Serving) -> float | None:
    """Tokens of answers in a second, by roofline."""
    from minitron.memory.roofline import estimate, load_of
    from minitron.memory.serving_speed import can_estimate

    if not can_estimate(gpu) or workload.context < 2:
        return None
    prompt = serving.prompt_of(workload.context)
    output = workload.context - prompt
    found = estimate(load_of(spec, workload), gpu, prompt=prompt, output=output, concurrency=workload.batch)
    return found.output_tokens_per_second


def _print(rows: list[dict[str, Any]], serving: Serving) -> None:
    if not rows:
        raise MinitronError("there is nothing to compare; give at least one model and one --gpu.")
    cells: list[list[show.Cell]] = [
        [
            each["model"],
            each["gpu"],
            format_parameters(each["parameters"]),
            format_bytes(each["weights_bytes"]),
            format_bytes(each["cache_bytes"]),
            format_bytes(each["total_bytes"]),
            format_bytes(each["available_bytes"] - each["total_bytes"]),
            _reach(each["longest_context_tokens"]),
            _reach(each["largest_batch_sequences"]),
            each["estimated_output_tokens_per_s"],
        ]
        for each in rows
    ]
    context = "its config's context" if serving.context is None else f"{serving.context:,} tokens"
    title = f"{context[0].upper()}{context[1:]} x {serving.batch:,}; engine {serving.engine.value}"
    columns = ["model", "GPU", "parameters", "weights", "caches", "total", "to spare", "longest", "batch", "output/s"]
    show.table(title, columns, cells)
    show.paragraph("output/s: tokens of answers in a second, an estimate by roofline (docs/speed.md).")
    for caution in dict.fromkeys(caution for each in rows for caution in each["cautions"]):
        show.paragraph(f"Note: {caution}")


def _reach(most: int | None) -> str:
    return "unlimited" if most is None else f"{most:,}"
