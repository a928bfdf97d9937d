"""How much memory `minitron score --offload` takes, on a synthetic checkpoint several times as large.

    python benchmarks/offload.py --work runs/offload [--blocks 8] [--whole]

Makes a hybrid MoE checkpoint with random weights in bf16, scores it layer by layer in a process of its own and reads
that process's largest resident memory (VmHWM: mapped pages of files count).  `--whole` scores it in memory too and
compares the scores.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_checkpoint import make
from smollm2 import write_section

from minitron import builtin
from minitron.cut.scores import load_scores
from minitron.files import read_json, write_json
from minitron.model.layerwise import EMBEDDING, OUTPUT, LayerwiseModel
from minitron.model.spec import read_spec
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")
PATTERN = "MEMEM*-E"
SIZES = {
    "hidden_size": 1024,
    "vocab_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 96,
    "intermediate_size": 3072,
    "mamba_num_heads": 24,
    "mamba_head_dim": 64,
    "n_groups": 4,
    "ssm_state_size": 64,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 640,
    "moe_shared_expert_intermediate_size": 1024,
}
SEQUENCES, LENGTH, LAYER_SEQUENCES = 16, 256, 1
RUNTIME = 2**30
"""What may come on top of the largest layer, the embeddings and the hidden states."""

_RUN = """
import sys
from cli.app import run
code = run(sys.argv[1:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1], file=sys.stderr)
sys.exit(code)
"""


def config_of(blocks: int) -> dict[str, Any]:
    """The config of `blocks` times PATTERN."""
    pattern = PATTERN * blocks
    config: dict[str, Any] = read_json(builtin.MODEL / "config.json") | SIZES
    return config | {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}


def score(model: Path, output: Path, *options: str) -> int:
    """The largest resident memory in bytes of a process that scores `model`; kept beside `output`, measured once."""
    known = output.with_suffix(".json")
    if known.exists():
        return int(read_json(known)["peak"])
    arguments = ["score", str(model), "--data", str(builtin.CALIBRATION), "-o", str(output), "--overwrite"]
    arguments += ["--samples", str(SEQUENCES), "--sequence-length", str(LENGTH), "--estimator", "surgeon"]
    arguments += ["--layer-samples", str(LAYER_SEQUENCES), "--max-dropped", "1", "--device", "cpu", *options]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    write_json(known, {"peak": int(done.stderr.split()[-1]) * 2**10})
    return int(read_json(known)["peak"])


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How far the scores of two files are apart."""
    first, second = load_scores(one), load_scores(other)
    apart = [key for key, values in first.importance.items() if not np.array_equal(values, second.importance[key])]
    return {"scores": len(first.importance), "apart": len(apart), "keys": [str(key) for key in apart[:4]]}


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=8, help=f"how many times {PATTERN}")
    parser.add_argument("--whole", action="store_true", help="score in memory too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = options.work / "model"
    if not model.exists():
        make(model, config_of(options.blocks), shard_bytes=2**30)
    spec = read_spec(model)
    source = LayerwiseModel(model, spec, dtype=torch.bfloat16, device=torch.device("cpu"))
    layer = max(source.bytes_of(number) for number in range(len(spec.layers)))
    embeddings = source.bytes_of(EMBEDDING) + source.bytes_of(OUTPUT)
    states = SEQUENCES * LENGTH * spec.sizes["hidden"] * 2
    streams = (len(spec.layers) + 3) * LAYER_SEQUENCES * LENGTH * spec.sizes["hidden"] * 2
    rows = {}
    apart, disk = options.work / "apart.safetensors", options.work / "disk.safetensors"
    rows["`--offload`"] = score(model, apart, "--offload")
    between = options.work / "between"
    rows["`--offload --offload-folder`"] = score(model, disk, "--offload", "--offload-folder", str(between))
    found = {"offload against folder": compare(apart, disk)}
    if options.whole:
        rows["in memory"] = score(model, options.work / "whole.safetensors")
        found["offload against in memory"] = compare(apart, options.work / "whole.safetensors")
    allowance = layer + embeddings + states + streams + RUNTIME
    lines = [
        "## Scoring models larger than memory (`benchmarks/offload.py`)",
        "",
        f"A synthetic hybrid MoE checkpoint, `{PATTERN}` times {options.blocks}: "
        f"{spec.parameters().total:,} parameters, {format_bytes(source.checkpoint.weight_bytes)} in bf16. "
        f"{SEQUENCES} sequences of {LENGTH} tokens, estimator surgeon with second moments, layers removed on "
        f"{LAYER_SEQUENCES} sequences. Allowance: largest layer {format_bytes(layer)} + embeddings and output layer "
        f"{format_bytes(embeddings)} + hidden states {format_bytes(states + streams)} + 1 GiB = "
        f"{format_bytes(allowance)}, {allowance / source.checkpoint.weight_bytes:.0%} of the checkpoint.",
        "",
        "| | largest resident memory | of the allowance | of the checkpoint |",
        "|---|--:|--:|--:|",
        *(
            f"| {name} | {format_bytes(peak)} | {peak / allowance:.2f} | {peak / source.checkpoint.weight_bytes:.2f} |"
            for name, peak in rows.items()
        ),
        "",
        *(
            f"Scores, {name}: {told['scores'] - told['apart']} of {told['scores']} arrays are the same to the last bit."
            for name, told in found.items()
        ),
        "",
    ]
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
