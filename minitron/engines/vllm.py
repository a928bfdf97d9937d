"""vLLM's memory for hybrid models: one pool of blocks for the KV cache and Mamba states.

All layers share one pool whose blocks have one size.  A page is what one layer keeps in a block: block_size tokens of
keys and values, or one whole Mamba state, so block_size is raised until the former holds the latter:

    block_size      = b * ceil(state of a layer / (b * keys and values of a token and layer))
    page            = block_size * keys and values of a token and layer
    group           = layers that share a block table: the fewest of attention, sliding and Mamba layers, or the most
                      where they are fewer than 1.5 times as many
    bytes of a block = group * page
    blocks          = sequences * (ceil(tokens / block_size) * ceil(A / group) + states * ceil(M / group)) + 1

b the block size that was asked for, 16 by default; A attention layers, M Mamba layers; `states` of a sequence are 1,
one more with prefix caching (of Mamba-2 two), one more for every drafted token; sliding layers hold the blocks of their
window only. The last block is the null block, which stands for what is not there. With full CUDA graphs the pool has at
least max_num_seqs blocks. The law is vLLM 0.32's; benchmarks and tests say against what it was checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import numpy as np

from minitron.engines import plain
from minitron.engines.keeping import Demand, Kept, LayerCache, smaller
from minitron.model.axes import HIDDEN, VOCAB
from minitron.model.dims import numel
from minitron.model.spec import ModelSpec
from minitron.units import MiB

TOKENS: Final = 16
"""Block sizes are multiples of so many tokens, and this many where nobody says otherwise and states fit."""

UTILIZATION: Final = 0.92
"""vLLM's own default of gpu_memory_utilization."""

# Read off the logs of real runs: see docs/planning.md.
ENGINE_CONTEXT: Final = 154 * MiB
"""CUDA's context and libraries of a vLLM process."""

CUDA_GRAPHS: Final = 205 * MiB
"""Recorded steps: between 0.04 and 1.4 GiB in logs."""

LEAST_ACTIVATIONS: Final = 819 * MiB
"""The smallest activation peak in logs, which range from 0.8 to 2.5 GiB."""

SAMPLER_COPIES: Final = 9.65
"""How many copies of [max_num_seqs, vocab] fp32 logits vLLM's sampler takes while it warms up: 9.6 to 9.7 were read."""


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


def pool(demand: Demand, keep: Kept) -> Pool:
    """The pool that a workload takes.  Where layers keep but one kind of thing, they are one group."""
    attention = [one for one in keep.caches if one.cache.keys_values]
    stateful = [one for one in keep.caches if one.cache.keeps_state]
    counts = [one.attention for one in attention] + [one.stateful for one in stateful]
    many, few = _most(counts), _fewest(counts)
    group = np.where(2 * many < 3 * few, many, few)
    kv_bytes = _most([np.where(one.attention > 0, one.token, 0) for one in attention])
    state_bytes = _most([np.where(one.stateful > 0, one.conv + one.state, 0) for one in stateful])
    least = demand.engine.block_size
    unit = np.maximum(least * kv_bytes, 1)
    block_size = np.where(kv_bytes > 0, least * np.maximum(-(-state_bytes // unit), 1), demand.context)
    page = np.where(kv_bytes > 0, block_size * kv_bytes, state_bytes)
    share = np.maximum(group, 1)
    groups, per_sequence = np.int64(0), np.int64(0)
    for one in attention:
        own = -(-one.attention // share)
        # A layer that keeps fewer bytes of a token has more tokens in a page.
        tokens = np.maximum(page // np.maximum(one.token, 1), 1)
        groups = groups + own
        per_sequence = per_sequence + own * _blocks(demand, one, tokens)
    for one in stateful:
        own = -(-one.stateful // share)
        states = 1 + demand.speculative_tokens + _prefix_states(demand, one)
        groups, per_sequence = groups + own, per_sequence + states * own
    needed = demand.batch * per_sequence + 1
    floor = demand.max_num_seqs if demand.engine.cuda_graphs else 0
    return Pool(block_size, page, group, groups, group * page, per_sequence, needed, np.maximum(needed, floor))


def _prefix_states(demand: Demand, one: LayerCache) -> int:
    """States of a sequence that a layer keeps for prefixes (vLLM's MambaSpec.max_memory_usage_bytes)."""
    return 1 + one.cache.checkpoints if demand.engine.prefix_caching else 0


STEPS: Final = 2
"""Steps that are under way at once: the next is scheduled while one runs, and its tokens are not let go of yet."""


def _blocks(demand: Demand, one: LayerCache, tokens: Any) -> Any:
    """Blocks of `tokens` tokens that one sequence holds in one layer.  Of a sliding window vLLM keeps what steps may
    still need: window - 1 tokens and those of the steps under way, and a block more, for a window begins anywhere in a
    block; of a chunk all its tokens and those of the steps (vLLM's SlidingWindowSpec and ChunkedLocalAttentionSpec,
    whose bounds `max_memory_usage_bytes` are what a short context takes as well)."""
    if one.window is None:
        return -(-demand.context // tokens)
    steps = STEPS * demand.engine.max_num_batched_tokens
    if one.cache.chunked:
        return -(-smaller(one.window + steps, demand.context) // tokens)
    held = smaller(one.window - 1 + steps, demand.context)
    return -(-held // tokens) + 1


def _most(counts: Sequence[Any]) -> Any:
    return reduce(np.maximum, counts, np.int64(0))


def _fewest(counts: Sequence[Any]) -> Any:
    """The least of those that are not zero; 0 where all are."""
    largest = np.int64(2**62)
    found: Any = largest
    for count in counts:
        found = np.minimum(found, np.where(count > 0, count, largest))
    return np.where(found == largest, 0, found)


def lines(demand: Demand, keep: Kept) -> dict[str, Any]:
    """Lines of the footprint: what layers keep, and what the pool's blocks add to it."""
    found = pool(demand, keep)
    held = plain.lines(demand, keep)
    if demand.engine.prefix_caching:
        held["prefix_states"] = demand.batch * sum(
            _prefix_states(demand, one) * one.layers * (one.conv + one.state) for one in keep.caches
        )
    held["block_rounding"] = (found.needed - 1) * found.block - sum(held.values())
    held["null_block"] = found.block
    held["graph_blocks"] = (found.blocks - found.needed) * found.block
    return held


def buffers(demand: Demand) -> dict[str, int]:
    """Lines of the footprint that are the engine's own, whatever the model."""
    return {"engine_context": ENGINE_CONTEXT, "cuda_graphs": CUDA_GRAPHS if demand.engine.cuda_graphs else 0}


def blocks_in(found: Pool, room: int) -> int:
    """Blocks of the pool that vLLM makes of so many bytes; none where no layer keeps anything."""
    return room // int(found.block) if found.block else 0


def tokens_in(demand: Demand, found: Pool, blocks: int) -> int:
    """The tokens that vLLM's log gives for so many blocks: as many sequences of the context as their blocks are those
    of one, times the context (vLLM's get_kv_cache_capacity); the null block is counted there as if it held some."""
    return int(blocks / int(found.per_sequence) * demand.context) if found.per_sequence else 0


def widest(spec: ModelSpec, local: Mapping[str, Any]) -> Any:
    """Outputs of the widest projection of any layer on one GPU, of routed experts those that a token uses."""
    found: Any = 0
    for kind, rules in spec.rules.items():
        if kind in spec.layers:
            sizes, (_, chosen) = spec.at(kind, local), spec.routed(kind, local)
            for rule in rules:
                if rule.is_projection and rule.writes is not None:
                    routed = chosen if rule.per_expert else 1
                    found = np.maximum(found, routed * numel(rule.writes, sizes))
    return found


COPIES: Final = 3
"""Input, output and their product are alive at once."""


def activations(spec: ModelSpec, demand: Demand, whole: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """Bytes of activations at their peak, an estimate: the largest of the sampler's warm-up, a step of
    max_num_batched_tokens through the widest layer in bf16 with the residual stream, and the least that logs show.

    `whole`: sizes of the model; `local`: what one GPU holds of them."""
    step = COPIES * 2 * demand.engine.max_num_batched_tokens * (whole[HIDDEN] + widest(spec, local))
    return np.maximum(np.maximum(sampler(demand, whole[VOCAB]), step), LEAST_ACTIVATIONS)


def sampler(demand: Demand, vocabulary: Any) -> Any:
    """Bytes of the sampler's warm-up, to the nearest, in whole numbers alone."""
    hundredths = round(100 * SAMPLER_COPIES)
    return (4 * hundredths * demand.max_num_seqs * vocabulary + 50) // 100


def tell_workspace(spec: ModelSpec, demand: Demand, local: Mapping[str, Any], found: Any) -> tuple[str, str, str]:
    """Formula, the formula with its numbers, and where they come from."""
    tokens = demand.engine.max_num_batched_tokens
    filled, what = f"{int(found):,} B", "the smallest peak in logs"
    if found == sampler(demand, spec.sizes[VOCAB]):
        filled = f"{SAMPLER_COPIES} x {demand.max_num_seqs:,} x {spec.sizes[VOCAB]:,} x 4 B"
        what = "the sampler's warm-up"
    elif found > LEAST_ACTIVATIONS:
        filled = f"{COPIES} x {tokens:,} x ({spec.sizes[HIDDEN]:,} + {int(widest(spec, local)):,}) x 2 B"
        what = f"a step of {tokens:,} tokens through the widest layer"
    formula = "the largest of: the sampler's warm-up, a step through the widest layer, the smallest peak in logs"
    return formula, filled, f"{what}; logs show peaks of 0.8 to 2.5 GiB"
