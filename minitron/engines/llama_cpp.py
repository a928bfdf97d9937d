"""llama.cpp's memory: one buffer of keys and values, one of states, one in which each step is computed.

    keys and values    layers x slots x cells x keys and values of a token; cells are the context of a slot, rounded up
                       to a multiple of 256, of a sliding window the tokens in it and a step more, likewise
    states             layers x slots x (last inputs of the convolution + recurrent state), all in fp32
    compute buffer     tokens of a step x (2 bytes of mask a cell + 4 bytes a number that is alive at once) + slots x
                       the state of one layer

A slot is a sequence (`--parallel`); its cells are taken when the server starts, however short the text.  The first two
are the code's (src/llama-kv-cache.cpp, src/llama-memory-recurrent.cpp) and were equal to the log in every case.  The
third has no law that is written down: ggml's allocator places tensors one after another.  What is alive at once was
read off loads of models that differ in one size: benchmarks/llama_cpp_memory.py says how far it is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from minitron.engines import plain
from minitron.engines.keeping import Demand, Kept, LayerCache, smaller
from minitron.model.axes import ACTIVE, HIDDEN, VOCAB
from minitron.model.dims import Dim, numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec

CELLS: Final = 256
"""A slot has a multiple of so many cells."""

KV_BLOCKS: Final = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Types of blocks in which keys and values are kept, where the width of a head is whole blocks."""

STREAM: Final = 5
"""Copies of the residual stream that are alive beside what a layer computes."""

_FP32: Final = 4
_MASK: Final = 2
_INPUTS: Final = 36
"""Bytes that a token of a step has as inputs: its number, its position, where its keys and values go."""

_FEED_FORWARD: Final = ("mlp", "moe_routed", "moe_shared")
"""Components of which the last layer computes the answer's tokens alone."""


def padded(tokens: Any) -> Any:
    """Cells for so many tokens."""
    return -(-tokens // CELLS) * CELLS


def cells(demand: Demand, one: LayerCache) -> Any:
    """Cells of one slot in one layer."""
    whole = padded(demand.context)
    if one.window is None:
        return whole
    return smaller(whole, padded(one.window + demand.engine.max_num_batched_tokens))


def lines(demand: Demand, keep: Kept) -> dict[str, Any]:
    """Lines of the footprint: what layers keep, and the cells that are taken beyond the context."""
    held = plain.lines(demand, keep)
    taken = sum(one.attention * one.token * cells(demand, one) for one in keep.caches)
    return {**held, "block_rounding": demand.batch * taken - held["kv_cache"]}


def tell_rounding(demand: Demand, keep: Kept) -> tuple[str, str, str, str]:
    """Of that line the formula, the formula with its numbers, origin and note."""
    found = [one for one in keep.caches if one.cache.keys_values]
    filled = " + ".join(
        f"{int(one.attention):,} x {demand.batch:,} x ({int(cells(demand, one)):,} - {one.tokens:,}) x "
        f"{int(one.token):,} B"
        for one in found
    )
    note = f"a slot has a multiple of {CELLS} cells"
    return "attention layers x slots x (cells - tokens) x keys and values per token", filled, "exact", note


def step_tokens(demand: Demand) -> Any:
    """Tokens of a step."""
    return smaller(demand.engine.max_num_batched_tokens, demand.batch * padded(demand.context))


def parts(spec: ModelSpec, sizes: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(numbers of a token, numbers of a slot) that are alive at once in each part of the layers, the residual stream
    included."""
    for kind in dict.fromkeys(spec.layers):
        own = spec.at(kind, sizes)
        for component in dict.fromkeys(rule.component for rule in spec.rules[kind]):
            # Behind the last layer's attention only the tokens are left of which an answer is wanted.
            if component in _FEED_FORWARD and kind not in spec.layers[:-1]:
                continue
            rules = [rule for rule in spec.rules[kind] if rule.component == component and rule.is_projection]
            if rules:
                yield _alive(spec, kind, component, rules, own), _state(spec, kind, own) if component == "ssm" else 0


def _state(spec: ModelSpec, kind: str, own: Mapping[str, Any]) -> Any:
    """Numbers of a slot's state in one layer, which the scan writes beside what it computes."""
    cache = spec.cache(kind)
    if cache is None:
        return 0
    channels, state = _size(cache.dim("conv_channels"), own), _size(cache.dim("state"), own)
    return state + channels * (own[cache.conv_taps] - 1 if cache.conv_taps else 0)


def _alive(spec: ModelSpec, kind: str, component: str, rules: list[Rule], own: Mapping[str, Any]) -> Any:
    """Numbers alive in one part of a layer, whose linears are `rules`, the last of which writes to the stream."""
    hidden = own[HIDDEN]
    *first, last = rules
    inside = [_size(rule.writes, own) for rule in first]
    reads = _size(last.reads, own)
    if component == "attention":
        keys = inside[1] if len(inside) > 1 else 0
        return np.maximum(3 * reads, 2 * reads + 2 * keys) + 3 * hidden
    if component == "ssm":
        cache = spec.cache(kind)
        channels = 0 if cache is None else _size(cache.dim("conv_channels"), own)
        return sum(inside) + 2 * channels + reads + STREAM * hidden
    # Of a gated MLP the gate, what it lets through and their product; else one, which is squared in place.
    width = reads * (3 if len(inside) > 1 else 1)
    if component == "moe_routed":
        width = own[ACTIVE] * (width + _size(last.writes, own))
    return width + STREAM * hidden


def _size(dim: Dim | None, own: Mapping[str, Any]) -> Any:
    return 0 if dim is None else numel(dim, own)


def compute_buffer(spec: ModelSpec, demand: Demand, whole: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """Bytes of the buffer in which a step is computed, with flash attention: an estimate."""
    tokens, found = step_tokens(demand), demand.batch * whole[VOCAB] * _FP32
    for each, slot in parts(spec, local):
        found = np.maximum(found, _bytes(demand, tokens, each, slot))
    return found


def _bytes(demand: Demand, tokens: Any, each: Any, slot: Any) -> Any:
    inputs = _MASK * padded(demand.context) + _INPUTS
    return tokens * (inputs + _FP32 * each) + demand.batch * _FP32 * slot


def tell_workspace(spec: ModelSpec, demand: Demand, local: Mapping[str, Any], found: Any) -> tuple[str, str, str]:
    """Formula, the formula with its numbers, and where they come from."""
    note = "the compute buffer, read off loads on the CPU; CUDA's own memory is not counted"
    tokens, cell = step_tokens(demand), int(padded(demand.context))
    for each, slot in parts(spec, local):
        if found == _bytes(demand, tokens, each, slot):
            formula = "tokens of a step x (2 B x cells of a slot + 4 B x numbers alive at once + inputs)"
            filled = f"{tokens:,} x (2 x {cell:,} + 4 x {int(each):,} + {_INPUTS}) B"
            if slot:
                return f"{formula} + slots x state", f"{filled} + {demand.batch:,} x 4 x {int(slot):,} B", note
            return formula, filled, note
    return "sequences x vocabulary x 4 B", f"{demand.batch:,} x {spec.sizes[VOCAB]:,} x 4 B", note
