"""`minitron quantize` of a checkpoint of Nemotron-Nano-9B-v2's shapes: time, and memory beside that of its layers.

    python benchmarks/quantise_memory.py --work runs/quantise --config Nemotron-Nano-9B-v2.json [--gib 4]

Makes a checkpoint with random weights of at most --gib GiB, with as many of the model's first layers as that holds, and
quantises it with and without calibration text.  Memory is the most anonymous memory that was seen (RssAnon).  The table
goes into benchmarks/RESULTS.md.  Needs Linux and twice --gib of disk.
"""

import argparse
import shutil
import sys
from math import prod
from pathlib import Path

from prune import RESULTS, small, watched
from random_checkpoint import make
from smollm2 import write_section

from minitron import builtin
from minitron.files import read_json
from minitron.model.spec import read_spec
from minitron.units import format_bytes

_MINITRON = "from cli.app import main; main()"
_IMPORTS = "import torch, importance.rounding.calibrated, pipeline.quantising; torch.zeros(1)"
TEXT = ["--data", str(builtin.CALIBRATION), "--samples", "1", "--sequence-length", "64"]
WAYS = {
    "int8, nearest": ["--format", "int8", "--round", "nearest"],
    "int8": ["--format", "int8"],
    "int4": ["--format", "int4"],
    "int4 with data": ["--format", "int4", *TEXT],
}


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model whose shapes are taken")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the checkpoint; the whole model has 16.6")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those that are measured")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model, output = options.work / f"random-{options.gib:g}", options.work / "random-out"
    if not model.exists():
        make(model, small(read_json(options.config), options.gib * 2**30))
    spec = read_spec(model)
    sizes: dict[int, int] = {}
    matrix = 0
    for one in spec.expected():
        layer = one.index.get("layer")
        if layer is not None:
            sizes[layer] = sizes.get(layer, 0) + 2 * prod(one.shape)
            matrix = max(matrix, 2 * prod(one.shape))
    idle = watched([sys.executable, "-c", _IMPORTS]).anonymous
    total = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    rows = []
    for name in options.ways:
        shutil.rmtree(output, ignore_errors=True)
        command = ["quantize", str(model), "--device", "cpu", "-o", str(output), *WAYS[name]]
        run = watched([sys.executable, "-c", _MINITRON, *command])
        rows.append(
            f"| {name} | {run.seconds:.0f} | {total / run.seconds / 1e6:.0f} | {format_bytes(run.anonymous)} | "
            f"{(run.anonymous - idle) / max(sizes.values()):.2f} |"
        )
        print(rows[-1], flush=True)
    shutil.rmtree(output, ignore_errors=True)
    lines = [
        "## Memory of quantize (`benchmarks/quantise_memory.py`)",
        "",
        f"Shapes of {options.config.stem}, {len(spec.layers)} layers, {format_bytes(total)} of random weights; the "
        f"largest layer has {format_bytes(max(sizes.values()))}, the largest matrix of one {format_bytes(matrix)}. One "
        f"thread of a machine that did other work too. A process that only imports has {format_bytes(idle)}.",
        "",
        "| | seconds | MB a second | anonymous memory, the most | less the imports, in layers |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
    ]
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
