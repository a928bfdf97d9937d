"""vLLM's law of memory for hybrids: one pool of blocks for keys, values and Mamba states.

All layers share one pool whose blocks have one size.  A page is what one layer keeps in a block: block_size tokens of
keys and values, or one whole Mamba state, so block_size is raised until the former holds the latter:

    block_size      = 16 * ceil(state of a layer / (16 * keys and values of a token and layer))
    page            = block_size * keys and values of a token and layer
    group           = layers that share a block table: the fewer of attention and Mamba layers, or the more where
                      they are fewer than 1.5 times as many
    bytes of a block = group * page
    blocks          = sequences * (ceil(tokens / block_size) * ceil(A / group) + states * ceil(M / group)) + 1

A attention layers, M Mamba layers; `states` of a sequence are 1, one more with prefix caching, one more for every
drafted token.  The last block is the null block, which stands for what is not there.  With full CUDA graphs the pool
has at least max_num_seqs blocks.  The law is vLLM 0.33's; benchmarks and tests say against what it was checked.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from minitron.memory.formats import FORMATS
from minitron.memory.workload import LEAST_ACTIVATIONS, SAMPLER_COPIES, Workload
from minitron.model.axes import numel
from minitron.model.spec import MTP, ModelSpec

if TYPE_CHECKING:
    from minitron.memory.budget import Budget

TOKENS: Final = 16
"""Block sizes are multiples of so many tokens."""

UTILIZATION: Final = 0.92
"""vLLM's own default of gpu_memory_utilization."""


@dataclass(frozen=True)
class Pool:
    """The pool of blocks.  Whole numbers, or arrays with one number a candidate."""

    block_size: Any
    """Tokens of a block."""

    page: Any
    """Bytes of one layer in a block."""

    group: Any
    """Layers that share a block table."""

    groups: Any
    """Of attention and of Mamba layers together."""

    block: Any
    """Bytes of a block."""

    per_sequence: Any
    """Blocks of a sequence of the workload's length."""

    needed: Any
    """Blocks of all sequences and the null block."""

    blocks: Any
    """Blocks of the pool: `needed`, or more where CUDA graphs ask for them."""


def pool(workload: Workload, kv_bytes: Any, state_bytes: Any, attention: Any, mamba: Any) -> Pool:
    """The pool that a workload takes.

    `kv_bytes`: of one token in one attention layer; `state_bytes`: of one Mamba layer's convolution and SSM state;
    `attention`, `mamba`: layers.  Where a model has only one of the two, its layers are one group."""
    few, many = np.minimum(attention, mamba), np.maximum(attention, mamba)
    group = np.where((few == 0) | (2 * many < 3 * few), many, few)
    kv_bytes = np.where(attention > 0, kv_bytes, 0)
    state_bytes = np.where(mamba > 0, state_bytes, 0)
    unit = np.maximum(TOKENS * kv_bytes, 1)
    block_size = np.where(kv_bytes > 0, TOKENS * np.maximum(-(-state_bytes // unit), 1), workload.context)
    page = np.where(kv_bytes > 0, block_size * kv_bytes, state_bytes)
    share = np.maximum(group, 1)
    states = 1 + workload.engine.prefix_caching + workload.speculative_tokens
    of_mamba = -(-mamba // share)
    of_attention = -(-attention // share)
    per_sequence = -(-workload.context // np.maximum(block_size, 1)) * of_attention + states * of_mamba
    needed = workload.batch * per_sequence + 1
    floor = workload.max_num_seqs if workload.engine.cuda_graphs else 0
    return Pool(
        block_size, page, group, of_attention + of_mamba, group * page, per_sequence, needed, np.maximum(needed, floor)
    )


def widest(spec: ModelSpec, local: Mapping[str, Any]) -> Any:
    """Outputs of the widest projection of any layer on one GPU, of routed experts those that a token uses."""
    found: Any = 0
    for kind, rules in spec.rules.items():
        if kind in spec.layers:
            for rule in rules:
                if len(rule.dims) == 2 and rule.name.endswith("_proj.weight"):
                    routed = spec.experts_per_token if "expert" in rule.pattern.axes else 1
                    found = np.maximum(found, routed * numel(rule.dims[0], local))
    return found


COPIES: Final = 3
"""Input, output and their product are alive at once."""


def activations(spec: ModelSpec, workload: Workload, whole: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """Bytes of activations at their peak, an estimate: the largest of the sampler's warm-up, a step of
    max_num_batched_tokens through the widest layer in bf16 with the residual stream, and the least that logs show.

    `whole`: sizes of the model; `local`: what one GPU holds of them."""
    step = COPIES * 2 * workload.engine.max_num_batched_tokens * (whole["hidden"] + widest(spec, local))
    return np.maximum(np.maximum(sampler(spec, workload), step), LEAST_ACTIVATIONS)


def sampler(spec: ModelSpec, workload: Workload) -> int:
    """Bytes of the sampler's warm-up."""
    return round(4 * SAMPLER_COPIES * workload.max_num_seqs * spec.sizes["vocab"])


def attention_layers(spec: ModelSpec, counts: Mapping[str, Any], speculative: bool) -> Any:
    """Layers that keep keys and values, those of the multi-token-prediction block among them where it drafts."""
    kinds = {kind for kind, cache in spec.family.cache.items() if cache.kv_per_token}
    found: Any = sum(counts.get(kind, 0) for kind in kinds)
    return found + (sum(counts.get(MTP + kind, 0) for kind in kinds) if speculative else 0)


def mamba_layers(spec: ModelSpec, counts: Mapping[str, Any]) -> Any:
    """Layers that keep a state."""
    return sum(counts.get(kind, 0) for kind, cache in spec.family.cache.items() if cache.ssm_state)


def serve_line(model: str, spec: ModelSpec, workload: Workload, budget: Budget) -> str:
    """The shell command that serves the workload.  What is reserved lowers the share of the GPU that vLLM may fill;
    of a budget without a GPU no share follows."""
    engine = workload.engine
    words = ["vllm", "serve", model, "--max-model-len", str(workload.context)]
    words += ["--max-num-seqs", str(workload.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    if budget.gpu is not None:
        share = floor(budget.available / budget.usable * 1000) / 1000 if budget.reserve else budget.utilization
        words += ["--gpu-memory-utilization", f"{share:g}"]
    if mamba_layers(spec, spec.kind_counts()):
        words += ["--mamba-ssm-cache-dtype", FORMATS[workload.ssm_state].config_names[0]]
    if FORMATS[workload.kv].quantised:
        words += ["--kv-cache-dtype", workload.kv]
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
    return shlex.join(words)
