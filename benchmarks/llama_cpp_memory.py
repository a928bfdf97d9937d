"""llama.cpp's memory by Minitron's law and by the log of llama.cpp itself, which loads models on the CPU.

    python benchmarks/llama_cpp_memory.py --work runs/gguf --smollm2 runs/smollm2/parent

The line that is run is the one that `minitron plan --engine llama.cpp` prints, read by llama-server's own parser.
SmolLM2 and hybrids cut from the built-in model are whole; the others have the widths of published models, random
weights, few layers and few experts.  The table goes into benchmarks/RESULTS.md.  Needs `pip install 'minitron[gguf]'`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

# The other scripts beside this one.
from llama_cpp import models
from llama_cpp_runs import buffers
from random_checkpoint import make
from smollm2 import RESULTS, write_section

from minitron.gguf.export import export
from minitron.memory.budget import Budget
from minitron.memory.footprint import Footprint, footprint
from minitron.memory.formats import FORMATS
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec, read_spec
from minitron.units import MiB

REFERENCE = Path(__file__).parent.parent / "tests" / "reference" / "models"
WIDTHS: dict[str, dict[str, Any]] = {
    "Nemotron-Nano-9B-v2": {"hybrid_override_pattern": "M-M*-M"},
    "Nemotron-3-Nano-30B-A3B": {"hybrid_override_pattern": "MEM*ME", "n_routed_experts": 16},
    "Nemotron-3-Super-120B-A12B": {"hybrid_override_pattern": "MEM*ME", "n_routed_experts": 32},
}
"""A published model -> what is changed of its config."""

LLAMAS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "head_dim": 128},
    "Llama-3.2-1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "head_dim": 64},
}
CASES = (
    {"context": 4096},
    {"context": 1000, "batch": 3},
    {"context": 16_384},
    {"context": 2048, "batch": 4, "kv": "q8_0"},
    {"context": 4096, "kv": "q4_0", "step": 256},
    {"context": 2048, "kv": "fp32", "step": 1024},
)
VOCABULARY = 2048
"""Of the built-in model's tokenizer, which models with random weights have."""


def made(work: Path) -> dict[str, Path]:
    """Checkpoint folders with the widths of published models; what is there is not made again."""
    configs: dict[str, dict[str, Any]] = {}
    for name, changes in WIDTHS.items():
        config = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))["config"]
        configs[name] = config | changes | {"num_hidden_layers": len(changes["hybrid_override_pattern"])}
        configs[name] = {key: value for key, value in configs[name].items() if value is not None}
        for key in ("layers_block_type", "mtp_hybrid_override_pattern", "mtp_layers_block_type"):
            configs[name].pop(key, None)
    for name, sizes in LLAMAS.items():
        more = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}
        configs[name] = sizes | more | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    found = {}
    for name, config in configs.items():
        folder = found[f"widths of {name}"] = work / f"widths-{name}"
        if not folder.exists():
            context = {"max_position_embeddings": 32_768, "num_nextn_predict_layers": 0}
            make(folder, config | context | {"vocab_size": VOCABULARY})
    return found


def asked(spec: ModelSpec, case: dict[str, Any], weights: str) -> Workload:
    """The workload of one of CASES."""
    engine = Engine("llama.cpp", max_num_batched_tokens=case.get("step", 512))
    options = {key: value for key, value in case.items() if key != "step"}
    return workload_of(spec, engine=engine, weights=weights, **options)


def row(name: str, spec: ModelSpec, workload: Workload, file: Path) -> str:
    """A row of the table: of each buffer what is counted and what the log says."""
    budget = Budget(2**40)
    *_, last = serve_line("model", spec, workload, budget).split(" && ")
    words = shlex.split(last)
    words[words.index("-m") + 1] = str(file)
    log = buffers(words)
    found: Footprint = footprint(spec, workload, None)
    kv, states = found.kv_cache + found.block_rounding, found.conv_state + found.ssm_state
    step = workload.engine.max_num_batched_tokens
    compute = found.workspace / MiB
    return (
        f"| {name} | {workload.weights} | {workload.context:,} x {workload.batch} | {workload.kv} | {step} | "
        f"{found.weights / MiB:.2f} / {log['model']:.2f} | {kv / MiB:.2f} / {log['KV']:.2f} | "
        f"{states / MiB:.2f} / {log.get('RS', 0):.2f} | {compute:.2f} / {log['compute']:.2f} "
        f"({compute / log['compute'] - 1:+.1%}) |"
    )


def main() -> None:
    """Parse the command line, compare, and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--smollm2", type=Path, required=True, help="SmolLM2-135M as a checkpoint folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    for name, folder in {**models(options.work, options.smollm2), **made(options.work)}.items():
        spec = read_spec(folder)
        for weights in ("gguf-bf16", "q4_k_m"):
            file = options.work / "memory.gguf"
            export(folder, file, FORMATS[weights].gguf, overwrite=True)
            for case in CASES if weights == "gguf-bf16" else CASES[:1]:
                workload = asked(spec, case, weights)
                if workload.kv == "fp32":
                    workload = replace(workload, kv="fp32")
                rows.append(row(name, spec, workload, file))
                print(rows[-1], flush=True)
            file.unlink()
    lines = [
        "## llama.cpp's memory (`benchmarks/llama_cpp_memory.py`)",
        "",
        "| model | weights | context x slots | KV | tokens of a step | weights, MiB: counted / log | KV | states | "
        "compute buffer |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
        *rows,
        "",
        "Loaded by xllamacpp on the CPU with the line that `minitron plan --engine llama.cpp` prints, with flash "
        "attention. The log has two digits behind the point; its model buffer is the mapped file from the first tensor "
        "to the last, with the padding of tensors to 32 bytes, and leaves out the copy of some matrices in another "
        "order that llama.cpp makes for a CPU alone. The compute buffer was read off such loads, and is no law of the "
        "code. Models called by their widths have random weights, 3 to 6 layers, 16 or 32 experts and a vocabulary of "
        f"{VOCABULARY:,}.",
        "",
    ]
    write_section(options.results, "\n".join(lines))


if __name__ == "__main__":
    main()
