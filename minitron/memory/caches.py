"""What layers keep between tokens, kind by kind: keys and values, the last inputs of convolutions, recurrent states.

    keys and values    layers x tokens x sequences x numbers of a token, of a sliding window's tokens only those in it
    conv state         layers x sequences x (taps - 1) inputs of every channel, one more for every drafted token
    recurrent state    layers x sequences x numbers of the state

Kinds that keep the same are told together.  All numbers are bytes on one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minitron.engines.keeping import Kept, LayerCache, smaller
from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS
from minitron.memory.workload import Workload
from minitron.model.dims import Dim, matrices, numel
from minitron.model.families import Cache
from minitron.model.matrix_layout import Layout
from minitron.model.spec import ModelSpec
from minitron.model.tensors import MTP, is_mtp


def kept(spec: ModelSpec, workload: Workload, local: Mapping[str, Any], counts: Mapping[str, Any]) -> Kept:
    """What layers keep, where `local` are the sizes on one GPU and `counts` the layers of each kind.

    The state of a Mamba-2 layer (Dao and Gu 2024) is heads x head width x state size numbers, beside the last
    conv_kernel - 1 inputs of x, B and C."""
    alike: dict[Any, list[str]] = {}
    for base, cache in spec.family.cache.items():
        for kind in dict.fromkeys(spec.layers + spec.mtp_layers):
            if spec.base(kind).removeprefix(MTP) == base:
                sizes = sorted(spec.own_sizes.get(kind, {}).items())
                alike.setdefault((cache, window_of(spec, cache, kind), *sizes), []).append(kind)
    return Kept(tuple(_layer_cache(spec, workload, local, counts, cache, own) for (cache, *_), own in alike.items()))


def _layer_cache(
    spec: ModelSpec,
    workload: Workload,
    local: Mapping[str, Any],
    counts: Mapping[str, Any],
    cache: Cache,
    kinds: list[str],
) -> LayerCache:
    sizes = spec.at(kinds[0], local)
    channels = 0 if (dim := cache.dim("conv_channels")) is None else numel(dim, sizes)
    columns = sizes[cache.conv_taps] - 1 + workload.speculative_tokens if cache.conv_taps else 0
    window = window_of(spec, cache, kinds[0])
    drafting = workload.speculative_tokens > 0 and bool(cache.keys_values)
    return LayerCache(
        cache=cache,
        layers=sum(counts.get(kind, 0) for kind in kinds if not is_mtp(kind)),
        drafting=sum(counts.get(kind, 0) for kind in kinds if is_mtp(kind)) if drafting else 0,
        token=_rows_bytes(cache.dim("keys_values"), sizes, FORMATS[workload.kv].kept("kv")),
        tokens=workload.context if window is None else smaller(workload.context, window),
        window=window,
        conv=channels * (columns * FORMATS[workload.conv_state].bits // 8),
        columns=columns,
        state=_rows_bytes(cache.dim("state"), sizes, FORMATS[workload.ssm_state].kept("state")),
        sizes=sizes,
    )


def _rows_bytes(dim: Dim | None, sizes: Mapping[str, Any], layout: Layout) -> Any:
    """Bytes of the rows that a dimension stacks, with their scales."""
    return 0 if dim is None else sum(layout.rows(count, columns) for count, columns in matrices(dim, sizes))


def require_whole_blocks(spec: ModelSpec, workload: Workload) -> None:
    """Raise MinitronError where heads are no whole number of the blocks in which keys and values are to be kept."""
    form = FORMATS[workload.kv]
    for kind in dict.fromkeys(spec.layers) if form.gguf else ():
        cache = spec.cache(kind)
        dim = None if cache is None else cache.dim("keys_values")
        for _, columns in () if dim is None else matrices(dim, spec.at(kind, spec.sizes)):
            if columns % form.group:
                raise MinitronError(
                    f"llama.cpp keeps keys and values in {workload.kv} in blocks of {form.group}, which do not divide "
                    f"a head of {columns}; choose --kv fp16."
                )


def window_of(spec: ModelSpec, cache: Cache, kind: str) -> int | None:
    """The tokens of the sliding window that a layer of a kind keeps keys and values of; None for all of the context."""
    window = spec.value(cache.window, kind) if cache.window else None
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise MinitronError(f"config.json: {cache.window} is {window!r}; it must be a positive whole number or null.")
    return window


def keeps_states(spec: ModelSpec) -> bool:
    """Whether some layer keeps something that does not grow with the tokens."""
    return any(cache.keeps_state for kind in set(spec.layers) if (cache := spec.cache(kind)))
