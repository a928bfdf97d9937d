"""Footprint: the memory of a model while it serves: weights, KV cache, Mamba states, and an engine's extra terms.

The plain law is the sum of what the model holds and what its sequences keep, nothing rounded to an engine's blocks:

    weights     every parameter and buffer, without the multi-token-prediction block, which engines load on request only
    KV cache    attention layers x tokens x sequences x keys and values of a token
    conv state  Mamba layers x sequences x (conv_kernel - 1) inputs of every convolution channel
    SSM state   Mamba layers x sequences x heads x head width x state size
    workspace   activations and buffers: a stated number, no part of the law

An engine's law (minitron.engines) adds what it rounds up, and its buffers.  All numbers are bytes, on one GPU
where a model is split among several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from minitron.engines.keeping import Kept
from minitron.engines.table import ENGINES, Fact
from minitron.memory.budget import Budget
from minitron.memory.caches import kept
from minitron.memory.formats import FORMATS, KV_SCALE_BYTES
from minitron.memory.parallel import per_gpu
from minitron.memory.precision import Tally, precision_of, tally_of, weight_bytes
from minitron.memory.workload import Workload
from minitron.model.dims import numel
from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Footprint:
    """Where the bytes go.  Whole numbers, or arrays with one number a candidate."""

    weights: Any = 0
    mtp_weights: Any = 0
    """The multi-token-prediction block, where it drafts tokens."""

    lora: Any = 0
    vision_encoder: Any = 0
    kv_cache: Any = 0
    conv_state: Any = 0
    ssm_state: Any = 0
    prefix_states: Any = 0
    """States of cached prefixes, one a sequence."""

    block_rounding: Any = 0
    """What the pool's blocks hold beyond the four lines above."""

    null_block: Any = 0
    graph_blocks: Any = 0
    """Blocks that only CUDA graphs ask for."""

    workspace: Any = 0
    """Activations and buffers."""

    cuda_graphs: Any = 0
    engine_context: Any = 0

    @property
    def lines(self) -> dict[str, Any]:
        """The terms by name, in the order in which they are told."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> Any:
        """The sum of all lines."""
        return sum(self.lines.values())

    def to_json(self) -> dict[str, int]:
        """The lines and their total; of those that are zero only what every footprint has."""
        found = {name: int(value) for name, value in (self.lines | {"total": self.total}).items()}
        return {name: value for name, value in found.items() if value or name in _ALWAYS}


_KEPT: Final = (
    "kv_cache",
    "conv_state",
    "ssm_state",
    "prefix_states",
    "block_rounding",
    "null_block",
    "graph_blocks",
)
"""Lines for what layers keep: of a budget they take what the others leave."""

_ALWAYS: Final = ("weights", "kv_cache", "conv_state", "ssm_state", "workspace", "total")


def footprint(
    spec: ModelSpec,
    workload: Workload,
    workspace: int | None = 0,
    sizes: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    tally: Tally | None = None,
) -> Footprint:
    """The bytes that a model takes: exact for weights, caches and states, a stated estimate for the rest.

    `sizes` (axis -> size) and `counts` (layer kind -> layers) stand in for the model's own: as numpy arrays of int64
    they count many candidates at once.  A mixture of formats depends on which layers stay, so it needs their `tally`
    (minitron.memory.precision) instead of `counts`.  `workspace`: bytes, or None for the engine's estimate."""
    counted = count(spec, workload, sizes, counts, tally)
    found = lines_of(spec, workload, workspace, counted)
    return Footprint(**{name: int(value) if np.ndim(value) == 0 else value for name, value in found.items()})


@dataclass(frozen=True)
class Counted:
    """What a footprint is made of, before an engine rounds it.  Whole numbers, arrays or expressions."""

    sizes: Mapping[str, Any]
    """axis -> size, of the model."""

    local: Mapping[str, Any]
    """The same on one GPU."""

    counts: Mapping[str, Any]
    """kind -> layers."""

    weights: Any
    mtp: Any
    """Bytes of the multi-token-prediction block."""

    keep: Kept


def count(
    spec: ModelSpec,
    workload: Workload,
    sizes: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    tally: Tally | None = None,
) -> Counted:
    """What a model holds and what its layers keep, as `footprint` takes it."""
    sizes = dict(spec.sizes) | dict(sizes or {})
    counts = dict(spec.kind_counts()) | dict(tally.kinds if tally else counts or {})
    local = per_gpu(spec, sizes, workload.tensor_parallel)
    weights, mtp = model_weights(spec, workload, local, counts, tally)
    keep = kept(spec, workload, local, counts)
    return Counted(sizes, local, counts, weights + kv_scales(spec, workload, keep), mtp, keep)


def lines_of(spec: ModelSpec, workload: Workload, workspace: int | None, counted: Counted) -> dict[str, Any]:
    """The lines of a footprint, with what the engine rounds and its buffers; those that it does not have are 0."""
    engine = ENGINES[workload.engine.name]
    if workspace is None:
        estimate = engine.workspace(spec, workload, counted.sizes, counted.local)
    return {
        "weights": counted.weights,
        "mtp_weights": counted.mtp if workload.speculative_tokens else 0,
        "lora": _lora(spec, workload, counted.local, counted.counts),
        "vision_encoder": workload.vision_encoder,
        "workspace": estimate if workspace is None else workspace,
        **engine.lines(workload, counted.keep),
        **engine.buffers(workload),
    }


def model_weights(
    spec: ModelSpec, workload: Workload, local: Mapping[str, Any], counts: Mapping[str, Any], tally: Tally | None
) -> tuple[Any, Any]:
    """Bytes of the weights, and of the multi-token-prediction block."""
    precision = precision_of(spec, workload.weights, workload.keep)
    if precision.uniform is not None:
        found = spec.parameters(local, counts)
        return found.total * precision.uniform.bits // 8, found.mtp * precision.uniform.bits // 8
    if tally is None:
        tally = tally_of(spec, precision)
        if any(counts[kind] is not count and counts[kind] != count for kind, count in tally.kinds.items()):
            raise ValueError("a mixture of formats depends on which layers stay: give their tally")
    return weight_bytes(spec, tally, local)


def kv_scales(spec: ModelSpec, workload: Workload, keep: Kept) -> Any:
    """Scales of keys and of values that a quantised checkpoint holds for every layer of attention, where neither its
    files nor a published mixture count them."""
    precision = precision_of(spec, workload.weights, workload.keep)
    if precision.uniform is not None or precision.stored or precision.mixture.attention_bytes:
        return 0
    scale = FORMATS[workload.kv].kept("kv").matrix_bytes
    if scale:
        scale = KV_SCALE_BYTES.get(FORMATS[workload.weights].method, scale)
    return 2 * scale * sum(one.layers for one in keep.caches if one.cache.keys_values)


def _lora(spec: ModelSpec, workload: Workload, local: Mapping[str, Any], counts: Mapping[str, Any]) -> Any:
    """Adapters in bf16: rank x (inputs + outputs) of every projection (Hu et al. 2021), routed experts left out."""
    if not workload.lora_rank:
        return 0
    found: Any = 0
    for kind, rules in spec.rules.items():
        if kind in spec.layers:
            sizes = spec.at(kind, local)
            for rule in rules:
                if rule.is_projection and not rule.per_expert:
                    found = found + counts[kind] * sum(numel(dim, sizes) for dim in rule.dims)
    return found * (workload.lora_rank * workload.loras * FORMATS["bf16"].bits // 8)


def engine_facts(spec: ModelSpec, workload: Workload, budget: Budget) -> tuple[Fact, ...]:
    """What the engine's log should say once it has loaded the model, where nothing else is in the budget; none for
    `plain`."""
    keep = kept(spec, workload, per_gpu(spec, spec.sizes, workload.tensor_parallel), spec.kind_counts())
    return ENGINES[workload.engine.name].facts(workload, keep, room_for_kept(spec, workload, budget))


def room_for_kept(spec: ModelSpec, workload: Workload, budget: Budget) -> int:
    """Bytes of the budget that everything but what layers keep leaves."""
    found = footprint(spec, workload, budget.workspace)
    others = int(found.total - sum(found.lines[name] for name in _KEPT))
    return max(budget.available - others, 0)
