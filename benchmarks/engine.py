"""The pool of blocks by Minitron's law and by vLLM's own functions, for published configs.

    make engine

Every config at three contexts, with and without prefix caching, with keys and values in bf16 and in FP8: tokens and
bytes of a block, groups, blocks of a sequence, and of 8 GiB the blocks and the tokens that vLLM's log would give.
vLLM's side is benchmarks/vllm_pool.py, run in the environment of `make serve`; nothing needs weights or a GPU.  The
table goes into benchmarks/RESULTS.md.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smollm2 import write_section

from minitron.engines import vllm
from minitron.memory.caches import kept
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import spec_of
from minitron.units import GiB

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "reference"
RESULTS = Path(__file__).with_name("RESULTS.md")
ROOM, STEP = 8 * GiB, 2048
CONTEXTS = (4096, 32_768, 131_072)
KV = {"bf16": "auto", "fp8": "fp8"}

HYBRIDS = (
    "Nemotron-Nano-9B-v2",
    "Nemotron-Nano-12B-v2",
    "Nemotron-3-Nano-4B",
    "Nemotron-3-Nano-30B-A3B",
    "Nemotron-3-Super-120B-A12B",
    "Granite-4.0-H-Tiny",
)
ATTENTION = ("Llama-3.1-8B", "Qwen3-8B")
WINDOWS: dict[str, dict[str, Any]] = {
    "Mistral-7B-v0.1": {"model_type": "mistral"},
    "gpt-oss-120b": {"model_type": "gpt_oss"},
    "Gemma-3-27B-text": {"model_type": "gemma3_text"},
}
"""Of tests/reference/families_facts.json, with the type that stands beside the config there."""

ARCHITECTURES = {
    "nemotron_h": "NemotronHForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""Type -> the class that vLLM looks for in a config, where a reference config names none."""


def configs() -> dict[str, dict[str, Any]]:
    """Name -> config, without keys that say nothing: transformers 5.19 checks the types of all that are there."""
    found = {name: json.loads((REFERENCE / "models" / f"{name}.json").read_text())["config"] for name in HYBRIDS}
    found |= {name: json.loads((REFERENCE / "models" / f"{name}.json").read_text())["config"] for name in ATTENTION}
    facts = json.loads((REFERENCE / "families_facts.json").read_text())
    found |= {name: facts[name]["config"] | more for name, more in WINDOWS.items()}
    return {
        name: {"architectures": [ARCHITECTURES[config["model_type"]]]}
        | {key: value for key, value in config.items() if value is not None}
        for name, config in found.items()
    }


def ours(config: dict[str, Any], case: dict[str, Any]) -> dict[str, int]:
    """The pool by Minitron's law."""
    spec = spec_of(config)
    engine = Engine("vllm", case["prefix_caching"], cuda_graphs=False, max_num_batched_tokens=case["step"])
    kv = next(name for name, theirs in KV.items() if theirs == case["kv"])
    workload = workload_of(spec, case["context"], weights="bf16", kv=kv, ssm_state="fp32", engine=engine)
    found = vllm.pool(workload, kept(spec, workload, spec.sizes, spec.kind_counts()))
    blocks = vllm.blocks_in(found, case["room"])
    return {
        "block_size_tokens": int(found.block_size),
        "page_bytes": int(found.page),
        "groups": int(found.groups),
        "block_bytes": int(found.block),
        "sequence_blocks": int(found.per_sequence),
        "budget_blocks": blocks,
        "pool_tokens": vllm.tokens_in(workload, found, blocks),
    }


def report(rows: list[tuple[str, dict[str, Any], dict[str, int], dict[str, int]]]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## vLLM's pool of blocks (`benchmarks/engine.py`)",
        "",
        "| model | cases | equal | tokens of a block | bytes of a block | groups | blocks of a sequence | "
        "tokens in 8 GiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, group in itertools.groupby(rows, key=lambda row: row[0]):
        found = list(group)
        same = sum(mine == theirs for _, _, mine, theirs in found)
        told = next(theirs for _, case, _, theirs in found if case["told"])
        lines.append(
            f"| {name} | {len(found)} | {same} | {told['block_size_tokens']:,} | {told['block_bytes']:,} | "
            f"{told['groups']} | {told['sequence_blocks']:,} | {told['pool_tokens']:,} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Contexts {', '.join(f'{one:,}' for one in CONTEXTS)}, prefix caching on and off, keys and values in bf16 "
            "and FP8, states in fp32, steps of 2,048 tokens. Equal: all seven numbers that vLLM 0.32's own functions "
            "give (tokens, bytes and groups of blocks, page, blocks of a sequence, blocks and tokens of 8 GiB). The "
            "numbers shown are vLLM's, at 131,072 tokens with prefix caching and bf16. Of vLLM's code ran: the "
            "settings made of the config, the alignment of hybrid blocks, the grouping of layers, the pool. Layers' "
            "entries are made of vLLM's own classes by their kind, with a GPU's 16 tokens a kernel and two steps in "
            "flight. vLLM 0.32 has no class of its own for Bamba.",
            "",
        ]
    )


def main() -> int:
    """Compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", help="vLLM's Python")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    models = configs()
    with tempfile.TemporaryDirectory() as work:
        cases = []
        for name, config in models.items():
            folder = Path(work) / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            for context, prefix_caching, kv in itertools.product(CONTEXTS, (True, False), KV.values()):
                told = (context, prefix_caching, kv) == (CONTEXTS[-1], True, "auto")
                case = {"folder": str(folder), "context": context, "batch": 1, "step": STEP, "room": ROOM, "kv": kv}
                cases.append(case | {"prefix_caching": prefix_caching, "name": name, "told": told})
        command = [options.python, Path(__file__).with_name("vllm_pool.py")]
        done = subprocess.run(command, input=json.dumps(cases), stdout=subprocess.PIPE, text=True, check=True)
    theirs = json.loads(done.stdout)
    rows = [
        (case["name"], case, ours(models[case["name"]], case), one) for case, one in zip(cases, theirs, strict=True)
    ]
    for name, case, mine, one in rows:
        if mine != one:
            differ = {key: (mine[key], one[key]) for key in mine if mine[key] != one[key]}
            print(f"{name} {case['context']:,} {case['kv']} {case['prefix_caching']}: {differ}", file=sys.stderr)
    section = report(rows)
    write_section(options.results, section)
    print(section)
    return int(any(mine != one for _, _, mine, one in rows))


if __name__ == "__main__":
    sys.exit(main())
