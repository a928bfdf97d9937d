"""The shell command with which an engine serves a workload."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Final

from minitron.engines.table import ENGINES
from minitron.memory.budget import Budget
from minitron.memory.caches import keeps_states
from minitron.memory.footprint import room_for_kept
from minitron.memory.formats import FORMATS, STORED, stored_format
from minitron.memory.ggml import MIXTURES, TYPES
from minitron.memory.workload import Engine, Workload
from minitron.model.sources import title
from minitron.model.spec import ModelSpec


def _vllm(model: str, spec: ModelSpec, workload: Workload, budget: Budget) -> list[str]:
    """What is reserved lowers the share of the GPU that vLLM may fill; of a budget without a GPU no share follows, but
    the bytes of the pool."""
    engine = workload.engine
    words = ["vllm", "serve", model, "--max-model-len", str(workload.context)]
    words += ["--max-num-seqs", str(workload.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    if budget.gpu is not None:
        share = floor(budget.available / budget.usable * 1000) / 1000 if budget.reserve else budget.utilization
        words += ["--gpu-memory-utilization", f"{share:g}"]
    else:
        words += ["--kv-cache-memory-bytes", str(room_for_kept(spec, workload, budget))]
    if engine.block_size != Engine.block_size:
        words += ["--block-size", str(engine.block_size)]
    if (dtype := _dtype(spec, workload)) is not None:
        words += ["--dtype", FORMATS[dtype].config_names[0]]
    if keeps_states(spec):
        words += ["--mamba-ssm-cache-dtype", (ENGINES["vllm"].states or {})[workload.ssm_state]]
    if FORMATS[workload.kv].quantised:
        words += ["--kv-cache-dtype", (ENGINES["vllm"].kv or {})[workload.kv]]
    elif spec.quantisation is not None and spec.quantisation.kv and FORMATS[workload.kv].bits == 16:
        # Otherwise it keeps them as the checkpoint was made for.
        words += ["--kv-cache-dtype", FORMATS[workload.kv].config_names[0]]
    words.append("--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching")
    if not engine.cuda_graphs:
        words.append("--enforce-eager")
    if workload.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(workload.tensor_parallel)]
    if workload.speculative_tokens:
        words += [
            "--speculative-config",
            f'{{"method": "mtp", "num_speculative_tokens": {workload.speculative_tokens}}}',
        ]
    if workload.lora_rank:
        words += ["--enable-lora", "--max-lora-rank", str(workload.lora_rank), "--max-loras", str(workload.loras)]
    return words


def _dtype(spec: ModelSpec, workload: Workload) -> str | None:
    """The format to compute in where vLLM is to be told: it goes by the config alone, and casts fp32 to 16 bits."""
    if workload.weights == STORED or FORMATS[workload.weights].quantised:
        return None
    stored = stored_format(spec.stated)
    return workload.weights if "fp32" in (stored, workload.weights) or workload.weights != stored else None


def _llama_cpp(model: str, spec: ModelSpec, workload: Workload, budget: Budget) -> list[list[str]]:
    """The GGUF file first.  A context is shared out among the slots; a step is at most a batch."""
    kind, tokens = FORMATS[workload.weights].gguf, workload.engine.max_num_batched_tokens
    file = f"{title(Path(model))}-{kind}.gguf"
    kept = (ENGINES["llama.cpp"].kv or {})[workload.kv]
    words = ["llama-server", "-m", file, "-ngl", "all", "-c", str(workload.context * workload.batch)]
    words += ["--parallel", str(workload.batch), "--no-kv-unified", "-ctk", kept, "-ctv", kept, "-fa", "on"]
    words += ["-ub", str(tokens), "-b", str(max(tokens, _BATCH))]
    # Text of the reader's own: which, no plan can say.
    calibrated = MIXTURES[kind].calibrated or any(TYPES[own].calibrated for own in workload.keep.values())
    matrix = ["--data", "TEXT"] if calibrated else []
    own = [word for part, name in workload.keep.items() for word in ("--keep", f"{part}={name}")]
    return [["minitron", "export", model, "--output", file, "--format", kind, *own, *matrix], words]


_BATCH: Final = 2048
"""llama.cpp's own tokens of a batch, which it computes in steps."""

_LINES: Final[dict[str, Callable[[str, ModelSpec, Workload, Budget], list[list[str]]]]] = {
    "vllm": lambda *asked: [_vllm(*asked)],
    "llama.cpp": _llama_cpp,
}
"""Engine -> the words of its commands, one after another."""


def serve_line(model: str, spec: ModelSpec, workload: Workload, budget: Budget, gguf: str = "") -> str:
    """The shell commands with which the workload's engine serves `model`, a folder or a name, of which there may be a
    GGUF file already; empty for no engine."""
    line = _LINES.get(workload.engine.name)
    if line is None:
        return ""
    words = line(model, spec, workload, budget)
    if gguf:
        (*_, serving) = words
        words = [[gguf if before == "-m" else word for before, word in zip(["", *serving], serving, strict=False)]]
    return " && ".join(map(shlex.join, words))
