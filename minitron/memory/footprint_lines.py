"""Every line of a footprint with its formula, its numbers and their origin.

A reader with a pencil gets the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from minitron.engines import vllm
from minitron.engines.keeping import Kept, LayerCache
from minitron.engines.table import ENGINES
from minitron.memory.budget import Budget
from minitron.memory.caches import kept
from minitron.memory.footprint import Footprint, footprint
from minitron.memory.formats import FORMATS
from minitron.memory.parallel import per_gpu
from minitron.memory.precision import Precision, parts_bytes, precision_of, tally_of
from minitron.memory.workload import Workload
from minitron.model.dims import Constant, Dim, Product, Stack, Word, numel
from minitron.model.families.nesting import TOWER
from minitron.model.matrix_layout import Layout
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp

ORIGINS: Final = ("exact", "published", "estimated", "given")
"""Where a number comes from: from the config alone, from a publication or an engine's source, from logs of other runs,
from the person who asks."""

TITLES: Final[dict[str, str]] = {
    "weights": "weights",
    "mtp_weights": "MTP weights",
    "lora": "LoRA adapters",
    "vision_encoder": "vision encoder",
    "kv_cache": "KV cache",
    "conv_state": "conv state",
    "ssm_state": "SSM state",
    "prefix_states": "prefix states",
    "block_rounding": "block rounding",
    "null_block": "null block",
    "graph_blocks": "graph blocks",
    "workspace": "workspace",
    "cuda_graphs": "CUDA graphs",
    "engine_context": "engine context",
    "total": "total",
}
"""line of a footprint -> how it is called."""


@dataclass(frozen=True)
class FootprintLine:
    """One line of a footprint."""

    name: str
    """Its name in Footprint.lines."""

    bytes: int
    formula: str
    """In words."""

    filled: str
    """The formula with its numbers; the result is `bytes`, to the byte."""

    origin: str
    """A name in ORIGINS."""

    note: str = ""
    """Where the number comes from, or what it covers."""

    @property
    def title(self) -> str:
        """How it is called."""
        return TITLES[self.name]

    def to_json(self) -> dict[str, Any]:
        """The term as a JSON object."""
        return {**vars(self), "title": self.title}


@dataclass(frozen=True)
class _Case:
    """What the formulas are filled from."""

    spec: ModelSpec
    workload: Workload
    budget: Budget | None
    found: Footprint
    sizes: Mapping[str, Any]
    """On one GPU."""

    keep: Kept

    @property
    def pool(self) -> vllm.Pool:
        """Of vLLM, whose lines alone tell of it."""
        return vllm.pool(self.workload, self.keep)


def footprint_lines(spec: ModelSpec, workload: Workload, budget: Budget | None = None) -> tuple[FootprintLine, ...]:
    """The lines of a model's footprint that are not zero, those that every model has among them.

    For a pruned candidate give the spec that is left (ModelSpec.resized)."""
    sizes = per_gpu(spec, spec.sizes, workload.tensor_parallel)
    keep = kept(spec, workload, sizes, spec.kind_counts())
    case = _Case(
        spec,
        workload,
        budget,
        footprint(spec, workload, budget.workspace if budget else 0),
        sizes,
        keep,
    )
    always = {"weights", "kv_cache", "workspace"}
    return tuple(
        FootprintLine(name, int(count), *_told(case, name))
        for name, count in case.found.lines.items()
        if count or name in always
    )


def _told(case: _Case, name: str) -> tuple[str, str, str, str]:
    own = ENGINES[case.workload.engine.name].tell.get(name)
    return _TELL[name](case) if own is None else own(case.workload, case.keep)


def _n(value: Any) -> str:
    return f"{int(value):,}"


def _bytes_each(bits: float) -> str:
    return f"{bits / 8:g} B"


def _tell_weights(case: _Case) -> tuple[str, str, str, str]:
    workload, spec = case.workload, case.spec
    precision = precision_of(spec, workload.weights, workload.keep)
    split = "" if workload.tensor_parallel == 1 else f", the share of one of {workload.tensor_parallel} GPUs"
    mtp = ", without the MTP block" if spec.mtp_layers else ""
    if TOWER in spec.rules:
        mtp += ", with what sees or hears, which a server of text alone need not load"
    parameters = spec.parameters(case.sizes).total
    note = precision.mixture.source + split + mtp
    if precision.uniform is not None:
        filled = f"{_n(parameters)} x {_bytes_each(precision.uniform.bits)}"
        return "parameters x bytes per parameter", filled, "exact", note
    formula = "numbers in each format x bytes per number + scales"
    return formula, _filled_mixture(case, precision), precision.mixture.origin, note


def _filled_mixture(case: _Case, precision: Precision, *, mtp: bool = False) -> str:
    """`30,491,811,840 x 0.5 B (nvfp4) + ... + 1,905,785,984 B (scales)`, of the model or of its MTP block."""
    numbers: dict[tuple[str, int], int] = {}
    found = tally_of(case.spec, precision)
    for kind, part, _ in parts_bytes(case.spec, found, case.sizes):
        if is_mtp(kind) == mtp:
            sizes = case.spec.at(kind, case.sizes)
            each = prod(int(numel(dim, sizes)) for dim in part.rule.matrix)
            experts = case.spec.routed(kind)[0] if part.rule.per_expert else 1
            key = (part.form.name, part.form.bits)
            numbers[key] = numbers.get(key, 0) + part.count * each * experts
    told = [f"{_n(count)} x {_bytes_each(bits)} ({name})" for (name, bits), count in numbers.items()]
    total = case.found.mtp_weights if mtp else case.found.weights
    scales = int(total) - sum(count * bits // 8 for (_, bits), count in numbers.items())
    return " + ".join([*told, *([f"{_n(scales)} B (scales)"] if scales else [])])


def _tell_mtp(case: _Case) -> tuple[str, str, str, str]:
    precision = precision_of(case.spec, case.workload.weights, case.workload.keep)
    formula = "numbers in each format x bytes per number; no published recipe quantises the MTP block"
    return formula, _filled_mixture(case, precision, mtp=True), "exact", "loaded for speculative decoding"


def _near(one: LayerCache) -> str:
    return "chunk" if one.cache.chunked else "sliding window"


def _tell_kv(case: _Case) -> tuple[str, str, str, str]:
    load = case.workload
    drafts = ", including the MTP block" if load.speculative_tokens else ""
    each = _each(FORMATS[load.kv].kept("kv"), "head's keys, or values, of a token")
    found = [one for one in case.keep.caches if one.cache.keys_values]
    windows = [
        f"; {_n(one.attention)} of them keep {_n(one.tokens)} tokens in a {_near(one)}"
        for one in found
        if one.tokens < load.context
    ]
    return (
        "attention layers x tokens x sequences x keys and values per token",
        " + ".join(f"{_n(one.attention)} x {_n(one.tokens)} x {_n(load.batch)} x {_n(one.token)} B" for one in found)
        or "0 B",
        "exact",
        f"{_n(case.keep.attention)} attention layers, {load.kv}, {each}{drafts}" + "".join(windows),
    )


def _each(layout: Layout, row: str) -> str:
    """What a number of a cache takes, and what the scale of a row of them."""
    number = f"{_bytes_each(float(layout.bits_with_scales))} per number"
    return f"{number} + {layout.row_bytes} B per {row}" if layout.row_bytes else number


def _tell_conv(case: _Case) -> tuple[str, str, str, str]:
    load, filled = case.workload, []
    found = [one for one in case.keep.caches if one.cache.conv_channels]
    for one in found:
        dim = one.cache.dim("conv_channels")
        assert dim is not None
        filled.append(
            f"{_n(one.layers)} x {_n(load.batch)} x {1 + load.speculative_tokens} x {_n(numel(dim, one.sizes))} x "
            f"{one.columns} x {_bytes_each(FORMATS[load.conv_state].bits)}"
        )
    return (
        f"{_called(found)} x sequences x states x channels x (conv_kernel - 1 + drafted tokens) x bytes per number",
        " + ".join(filled),
        "exact",
        f"{_n(sum(one.layers for one in found))} {_called(found)}, {load.conv_state}",
    )


def _tell_ssm(case: _Case) -> tuple[str, str, str, str]:
    load, found, filled, named = case.workload, [], [], []
    layout = FORMATS[load.ssm_state].kept("state")
    number = _bytes_each(float(layout.bits_with_scales))
    for one in case.keep.caches:
        dim = one.cache.dim("state")
        if dim is None:
            continue
        factors = dim.factors if isinstance(dim, Product) else (dim,)
        found.append(one)
        *rows, row = (_n(numel(factor, one.sizes)) for factor in factors)
        each = f"({row} x {number} + {layout.row_bytes} B)" if layout.row_bytes else f"{row} x {number}"
        counts = (_n(one.layers), _n(load.batch), str(1 + load.speculative_tokens))
        filled.append(" x ".join([*counts, *rows, each]))
        named.append(" x ".join(_label(case.spec, factor) for factor in factors))
    return (
        f"{_called(found)} x sequences x states x {' or '.join(dict.fromkeys(named))} x bytes per number"
        + (" + scales" if layout.row_bytes else ""),
        " + ".join(filled),
        "exact",
        f"{_n(sum(one.layers for one in found))} {_called(found)}, {load.ssm_state}, {_each(layout, 'channel')}",
    )


def _called(found: Sequence[LayerCache]) -> str:
    """What the layers are called that keep something."""
    return " and ".join(dict.fromkeys(one.cache.called for one in found)) or "layers"


def _label(spec: ModelSpec, dim: Dim) -> str:
    """A dimension in the labels of its axes."""
    match dim:
        case Word(name):
            return spec.axis(name).label
        case Constant(size):
            return str(size)
        case Product(parts):
            return "(" + " x ".join(_label(spec, part) for part in parts) + ")"
        case Stack(parts):
            return "(" + " + ".join(_label(spec, part) for part in parts) + ")"


def _tell_prefix(case: _Case) -> tuple[str, str, str, str]:
    load = case.workload
    found = [one for one in case.keep.caches if one.cache.keeps_state]
    return (
        f"sequences x {_called(found)} x states x state per layer",
        " + ".join(
            f"{_n(load.batch)} x {_n(one.layers)} x {1 + one.cache.checkpoints} x {_n(one.conv + one.state)} B"
            for one in found
        ),
        "exact",
        "the state at the end of a cached prefix, besides the running one"
        + ("; of Mamba-2 also one within a step" if any(one.cache.checkpoints for one in found) else ""),
    )


def _tell_rounding(case: _Case) -> tuple[str, str, str, str]:
    pool, found = case.pool, case.found
    inside = ("kv_cache", "conv_state", "ssm_state", "prefix_states")
    held = sum(found.lines[name] for name in inside)
    return (
        "(blocks - null block) x bytes per block - caches and states",
        f"{_n(pool.needed - 1)} x {_n(pool.block)} B - {_n(held)} B",
        "exact",
        f"blocks of {_n(pool.block_size)} tokens, {_n(pool.groups)} groups of {_n(pool.group)} layers, "
        f"pages of {_n(pool.page)} B, {_n(pool.per_sequence)} blocks per sequence",
    )


def _tell_null(case: _Case) -> tuple[str, str, str, str]:
    pool = case.pool
    return (
        "layers per group x page",
        f"{_n(pool.group)} x {_n(pool.page)} B",
        "exact",
        "a placeholder block that vLLM reserves",
    )


def _tell_graph_blocks(case: _Case) -> tuple[str, str, str, str]:
    pool = case.pool
    return (
        "(max_num_seqs - blocks needed) x bytes per block",
        f"({_n(pool.blocks)} - {_n(pool.needed)}) x {_n(pool.block)} B",
        "exact",
        "full CUDA graphs need one block for every sequence that may run",
    )


def _tell_workspace(case: _Case) -> tuple[str, str, str, str]:
    budget, load = case.budget, case.workload
    if budget is None or budget.workspace is not None:
        note = "--workspace" if case.found.workspace else "not counted without --workspace"
        return "activations and buffers", f"{_n(case.found.workspace)} B", "given", note
    formula, filled, note = ENGINES[load.engine.name].tell_workspace(case.spec, load, case.sizes, case.found.workspace)
    return formula, filled, "estimated", note


def _fixed(formula: str, origin: str, note: str, name: str) -> Callable[[_Case], tuple[str, str, str, str]]:
    return lambda case: (formula, f"{_n(case.found.lines[name])} B", origin, note)


def _tell_lora(case: _Case) -> tuple[str, str, str, str]:
    load = case.workload
    width = int(case.found.lora) // (load.lora_rank * load.loras * FORMATS["bf16"].bits // 8)
    return (
        "adapters x rank x (inputs + outputs of every projection) x bytes per number",
        f"{_n(load.loras)} x {_n(load.lora_rank)} x {_n(width)} x 2 B",
        "exact",
        "bf16, without routed experts",
    )


_TELL: Final[dict[str, Callable[[_Case], tuple[str, str, str, str]]]] = {
    "weights": _tell_weights,
    "mtp_weights": _tell_mtp,
    "lora": _tell_lora,
    "vision_encoder": _fixed("reserved for the vision encoder", "given", "--vision", "vision_encoder"),
    "kv_cache": _tell_kv,
    "conv_state": _tell_conv,
    "ssm_state": _tell_ssm,
    "prefix_states": _tell_prefix,
    "block_rounding": _tell_rounding,
    "null_block": _tell_null,
    "graph_blocks": _tell_graph_blocks,
    "workspace": _tell_workspace,
    "cuda_graphs": _fixed("captured decoding steps", "estimated", "logs show 0.04 to 1.4 GiB", "cuda_graphs"),
    "engine_context": _fixed("CUDA's context and libraries", "estimated", "about 0.15 GiB in logs", "engine_context"),
}
