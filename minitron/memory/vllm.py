"""vLLM's memory for hybrid models: one pool of blocks for the KV cache and Mamba states.

All layers share one pool whose blocks have one size.  A page is what one layer keeps in a block: block_size tokens of
keys and values, or one whole Mamba state, so block_size is raised until the former holds the latter:

    block_size      = 16 * ceil(state of a layer / (16 * keys and values of a token and layer))
    page            = block_size * keys and values of a token and layer
    group           = layers that share a block table: the fewest of attention, sliding and Mamba layers, or the most
                      where they are fewer than 1.5 times as many
    bytes of a block = group * page
    blocks          = sequences * (ceil(tokens / block_size) * ceil(A / group) + states * ceil(M / group)) + 1

A attention layers, M Mamba layers; `states` of a sequence are 1, one more with prefix caching, one more for every
drafted token; sliding layers hold the blocks of their window only.  The last block is the null block, which stands for
what is not there.  With full CUDA graphs the pool has at least max_num_seqs blocks.  The law is vLLM 0.33's;
benchmarks and tests say against what it was checked.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import floor
from typing import Any, Final

import numpy as np

from minitron.memory.budget import Budget
from minitron.memory.caches import Kept, LayerCache, keeps_states
from minitron.memory.formats import FORMATS, STORED, stored_format
from minitron.memory.workload import LEAST_ACTIVATIONS, SAMPLER_COPIES, Workload
from minitron.model.axes import HIDDEN, VOCAB
from minitron.model.dims import numel
from minitron.model.spec import ModelSpec

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


def pool(workload: Workload, keep: Kept) -> Pool:
    """The pool that a workload takes.  Where layers keep but one kind of thing, they are one group."""
    attention = [one for one in keep.caches if one.cache.keys_values]
    stateful = [one for one in keep.caches if one.cache.keeps_state]
    counts = [one.attention for one in attention] + [one.stateful for one in stateful]
    many, few = _most(counts), _fewest(counts)
    group = np.where(2 * many < 3 * few, many, few)
    kv_bytes = _most([np.where(one.attention > 0, one.token, 0) for one in attention])
    state_bytes = _most([np.where(one.stateful > 0, one.conv + one.state, 0) for one in stateful])
    unit = np.maximum(TOKENS * kv_bytes, 1)
    block_size = np.where(kv_bytes > 0, TOKENS * np.maximum(-(-state_bytes // unit), 1), workload.context)
    page = np.where(kv_bytes > 0, block_size * kv_bytes, state_bytes)
    share = np.maximum(group, 1)
    states = 1 + workload.engine.prefix_caching + workload.speculative_tokens
    groups, per_sequence = np.int64(0), np.int64(0)
    for one in attention:
        own = -(-one.attention // share)
        # A layer that keeps fewer bytes of a token has more tokens in a page.
        tokens = np.maximum(page // np.maximum(one.token, 1), 1)
        groups = groups + own
        per_sequence = per_sequence + own * _blocks(workload, one, tokens)
    for one in stateful:
        own = -(-one.stateful // share)
        groups, per_sequence = groups + own, per_sequence + states * own
    needed = workload.batch * per_sequence + 1
    floor = workload.max_num_seqs if workload.engine.cuda_graphs else 0
    return Pool(block_size, page, group, groups, group * page, per_sequence, needed, np.maximum(needed, floor))


def _blocks(workload: Workload, one: LayerCache, tokens: Any) -> Any:
    """Blocks of `tokens` tokens that one sequence holds in one layer.  Of a sliding window vLLM keeps what a step may
    still need: window - 1 tokens and those of the step, and a block more, for a window begins anywhere in a block; of a
    chunk all its tokens and those of the step (vLLM's SlidingWindowSpec and ChunkedLocalAttentionSpec, whose bounds
    `max_memory_usage_bytes` are what a short context takes as well)."""
    if one.window is None:
        return -(-workload.context // tokens)
    if one.cache.chunked:
        return -(-min(one.window + workload.engine.max_num_batched_tokens, workload.context) // tokens)
    held = min(one.window - 1 + workload.engine.max_num_batched_tokens, workload.context)
    return -(-held // tokens) + 1


def _most(counts: Sequence[Any]) -> Any:
    return reduce(np.maximum, counts, np.int64(0))


def _fewest(counts: Sequence[Any]) -> Any:
    """The least of those that are not zero; 0 where all are."""
    largest = np.int64(2**62)
    found: Any = largest
    for count in counts:
        found = np.minimum(found, np.where(np.asarray(count) > 0, count, largest))
    return np.where(found == largest, 0, found)


def widest(spec: ModelSpec, local: Mapping[str, Any]) -> Any:
    """Outputs of the widest projection of any layer on one GPU, of routed experts those that a token uses."""
    found: Any = 0
    for kind, rules in spec.rules.items():
        if kind in spec.layers:
            sizes, (_, chosen) = spec.at(kind, local), spec.routed(kind)
            for rule in rules:
                if rule.is_projection and rule.writes is not None:
                    routed = chosen if rule.per_expert else 1
                    found = np.maximum(found, routed * numel(rule.writes, sizes))
    return found


COPIES: Final = 3
"""Input, output and their product are alive at once."""


def activations(spec: ModelSpec, workload: Workload, whole: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """Bytes of activations at their peak, an estimate: the largest of the sampler's warm-up, a step of
    max_num_batched_tokens through the widest layer in bf16 with the residual stream, and the least that logs show.

    `whole`: sizes of the model; `local`: what one GPU holds of them."""
    step = COPIES * 2 * workload.engine.max_num_batched_tokens * (whole[HIDDEN] + widest(spec, local))
    return np.maximum(np.maximum(sampler(spec, workload), step), LEAST_ACTIVATIONS)


def sampler(spec: ModelSpec, workload: Workload) -> int:
    """Bytes of the sampler's warm-up."""
    return round(4 * SAMPLER_COPIES * workload.max_num_seqs * spec.sizes[VOCAB])


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
    if (dtype := _dtype(spec, workload)) is not None:
        words += ["--dtype", FORMATS[dtype].config_names[0]]
    if keeps_states(spec):
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


def _dtype(spec: ModelSpec, workload: Workload) -> str | None:
    """The format to compute in where vLLM is to be told: it goes by the config alone, and casts fp32 to 16 bits."""
    if workload.weights == STORED or FORMATS[workload.weights].quantised:
        return None
    stored = stored_format(spec.stated)
    return workload.weights if "fp32" in (stored, workload.weights) or workload.weights != stored else None
