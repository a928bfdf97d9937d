"""Loads: what a model costs a GPU, as numbers from which its speed follows (minitron.memory.roofline).

Whole numbers of one model, or arrays with one number a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from minitron.engines.keeping import Kept, LayerCache
from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.parallel import per_gpu, require_splits
from minitron.memory.precision import Part, Tally, parts_bytes, precision_of, tally_of
from minitron.memory.workload import Workload
from minitron.model.axes import whole
from minitron.model.dims import numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_read

ACTIVATION_PASSES: Final = 2
"""How often the inputs and outputs of a projection cross memory beside the matmul itself: norms, gates, convolutions
and residuals read and write them.  Assumed."""

STATE_PASSES: Final = 4
"""How often the states between the chunks of a scan cross memory: written and read once as they are, once passed on
(the kernels of Dao and Gu 2024).  Assumed."""

RECURRENCE_OPERATIONS: Final = 9
"""Of each number of the state and token where a scan goes token by token (the kernel of Gu and Dao 2023 as its authors
count it): a decay, its product with the state, what a token adds, and the read."""

CHUNK: Final = 128
"""Tokens of a chunk of the scan where the config does not say."""

_CHUNK_KEYS: Final = ("chunk_size", "mamba_chunk_size", "block_size")
_BF16_BYTES: Final = 2
_FP32_BYTES: Final = 4


@dataclass(frozen=True)
class Weights:
    """Some of a model's weights.  Whole numbers, or arrays with one number a candidate."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """format (minitron.memory.formats.FORMATS) -> how many."""

    bytes: Any = 0
    """All together, scales included."""


@dataclass(frozen=True)
class Routed(Weights):
    """The routed experts of layers that have as many of them and send a token to as many."""

    num_experts: Any = 0
    """Of one layer."""

    experts_per_token: Any = 0

    def __post_init__(self) -> None:
        if not np.all((self.experts_per_token >= 0) & (self.experts_per_token <= self.num_experts)):
            raise MinitronError(
                f"a token cannot be routed to {self.experts_per_token} of {self.num_experts} experts; give fewer."
            )

    @property
    def share(self) -> Any:
        """Of the experts, those that one token uses."""
        return self.experts_per_token / (
            np.maximum(self.num_experts, 1) if is_many(self.num_experts) else self.num_experts or 1
        )

    def touched_share(self, tokens: int) -> Any:
        """Of the experts, those that some of `tokens` tokens is expected to use where each takes k of E by chance:
        1 - (1 - k / E)^tokens."""
        return 1 - (1 - self.share) ** tokens


@dataclass(frozen=True)
class Window:
    """Layers that attend to a sliding window of the last tokens."""

    tokens: int
    kv_bytes_per_token: Any
    operations: Any
    """Of a token, for each token that it attends to, all these layers."""


@dataclass(frozen=True)
class Load:
    """What a model costs a GPU, as numbers.  On one GPU where the model is split among several.  Whole numbers, or
    arrays with one number a candidate."""

    dense: Weights
    """What every token uses, without the input embedding, of which a token reads one row, and without the head."""

    head: Weights
    """The output head, or the embedding where it serves as the head: every decoded token uses it, and the last token of
    a prompt."""

    experts: tuple[Routed, ...] = ()
    """The routed experts of all layers."""

    kv_bytes_per_token: Any = 0
    """Keys and values, all layers that keep the whole context."""

    windows: tuple[Window, ...] = ()
    """The layers that keep a sliding window."""

    state_bytes_per_sequence: Any = 0
    """Convolution and SSM states, all layers."""

    attention_operations: Any = 0
    """Of a token, for each token that it attends to: 2 * query heads * (width of a key + of a value), all layers that
    keep the whole context."""

    scan_operations: Any = 0
    """Of a token in the scan, all layers."""

    activation_bytes: Any = 0
    """What a token of a prompt moves through memory beside the matmuls, all layers."""

    def weight_bytes(self, tokens: int) -> Any:
        """Bytes of weights that a step with so many tokens reads."""
        routed = sum(experts.bytes * experts.touched_share(tokens) for experts in self.experts)
        return self.dense.bytes + self.head.bytes + routed


def load_of(
    spec: ModelSpec, workload: Workload, sizes: Mapping[str, Any] | None = None, tally: Tally | None = None
) -> Load:
    """What a model costs when its numbers are kept as `workload` says; context, batch and drafted tokens do not matter.

    `sizes` (axis -> size) and the `tally` of the layers that stay stand in for the model's own: as numpy arrays they
    count many candidates at once.  Raises MinitronError where the model cannot be split among the workload's GPUs."""
    workload = replace(workload, speculative_tokens=0)
    if sizes is None:
        require_splits(spec, workload.tensor_parallel)
    local = per_gpu(spec, {**spec.sizes, **(sizes or {})}, workload.tensor_parallel)
    found = tally or tally_of(spec, precision_of(spec, workload.weights, workload.keep))
    dense, head, experts = _groups(spec, found, local)
    keep = kept(spec, workload, local, found.kinds)
    unwindowed = [one for one in keep.caches if one.window is None]
    return Load(
        dense=dense,
        head=head,
        experts=experts,
        kv_bytes_per_token=sum(_whole(one.attention * one.token) for one in unwindowed),
        windows=tuple(
            Window(one.window, _whole(one.attention * one.token), _attention_operations(one))
            for one in keep.caches
            if one.window is not None
        ),
        state_bytes_per_sequence=_whole(keep.conv_bytes + keep.state_bytes),
        attention_operations=sum(_attention_operations(one) for one in unwindowed),
        scan_operations=sum(_scan_operations(spec, one) for one in keep.caches),
        activation_bytes=_activation_bytes(spec, local, keep, found.kinds),
    )


def _groups(spec: ModelSpec, found: Tally, local: Mapping[str, Any]) -> tuple[Weights, Weights, tuple[Routed, ...]]:
    """The weights as Load groups them, the input embedding left out: dense ones, the head's, those of experts."""
    # Experts under how many there are and how many a token is sent to, of many candidates under their kind of layer.
    parameters: dict[Any, dict[str, Any]] = {"dense": {}, "head": {}}
    total: dict[Any, Any] = {"dense": 0, "head": 0}
    routed: dict[Any, tuple[Any, Any]] = {}
    for name, part, count in _served(spec, local, parts_bytes(spec, found, local)):
        uses, sizes = _uses(found.kinds, part.kind, part.rule), spec.at(part.kind, local)
        numbers = part.count * uses
        for dim in part.rule.matrix:
            numbers = numbers * numel(dim, sizes)
        group: Any = name
        if name == "experts":
            chosen = spec.routed(part.kind, local)
            group = (name, part.kind) if any(map(is_many, chosen)) else chosen
            routed[group] = chosen
            numbers = numbers * chosen[0]
        own = parameters.setdefault(group, {})
        own[part.form.name] = own.get(part.form.name, 0) + _whole(numbers)
        total[group] = total.get(group, 0) + _whole(count * uses)
    experts = [Routed(parameters[group], total[group], *chosen) for group, chosen in routed.items()]
    dense, head = (Weights(parameters[name], total[name]) for name in ("dense", "head"))
    return dense, head, tuple(experts)


def _uses(kinds: Mapping[str, Any], kind: str, rule: Rule) -> Any:
    """How often a token passes a tensor for every time that it is stored: blocks that layers share are read anew by
    each of them, for nothing of their size stays in a GPU's caches."""
    if not rule.also_run_by:
        return 1
    stored, more = {"model": 1, **kinds}[kind], sum(kinds.get(other, 0) for other in rule.also_run_by)
    return (stored + more) / np.maximum(stored, 1) if is_many(stored) else Fraction(stored + more, stored)


def _served(
    spec: ModelSpec, local: Mapping[str, Any], parts: Iterator[tuple[str, Part, Any]]
) -> Iterator[tuple[str, Part, Any]]:
    """The parts that serving reads, each with the name of its group."""
    tied = not any(rule.tied_to for rule in spec.rules["model"])
    names = {"lm_head": "head", "embedding": "head" if tied else ""}
    for kind, part, count in parts:
        if not is_read(kind):
            continue
        name = names.get(part.rule.component, "dense")
        if part.rule.per_expert:
            name = "experts"
        if name:
            yield name, part, count


def _attention_operations(one: LayerCache) -> Any:
    """Of a token, for each token that it attends to, in all layers that keep this."""
    return 2 * _whole(one.attention) * _numbers(one, "attends")


def _numbers(one: LayerCache, part: str) -> Any:
    dim = one.cache.dim(part)
    return 0 if dim is None else _whole(numel(dim, one.sizes))


def _chunk(spec: ModelSpec) -> int:
    return next((max(1, whole(key, spec.value(key))) for key in _CHUNK_KEYS if spec.value(key)), CHUNK)


def _scan_operations(spec: ModelSpec, one: LayerCache) -> Any:
    """Of a token in the chunked scan (Dao and Gu 2024, section 6), in all layers that keep this: two for each number of
    the state when the chunk's is built and two when it is read, and what attention within the chunk takes, half of
    which the causal mask saves; or RECURRENCE_OPERATIONS of each where the scan knows no chunks."""
    state = _numbers(one, "state")
    if not one.cache.scans:
        return _whole(one.layers) * RECURRENCE_OPERATIONS * state
    return _whole(one.layers) * (4 * state + _chunk(spec) * _numbers(one, "scans"))


def _activation_bytes(spec: ModelSpec, local: Mapping[str, Any], keep: Kept, counts: Mapping[str, Any]) -> Any:
    """What a token of a prompt moves beside the matmuls: inputs and outputs of projections, states between chunks."""
    numbers: Any = 0
    for kind, rules in spec.rules.items():
        if kind not in spec.layers:
            continue
        sizes, (_, chosen) = spec.at(kind, local), spec.routed(kind, local)
        for rule in rules:
            if rule.is_projection:
                times = chosen if rule.per_expert else 1
                passes = _whole(counts[kind] * _uses(counts, kind, rule))
                numbers = numbers + passes * times * sum(_whole(numel(dim, sizes)) for dim in rule.matrix)
    # A scan without chunks keeps its states where it works.
    held = sum(_whole(one.layers) * _numbers(one, "state") for one in keep.caches if one.cache.scans)
    states = STATE_PASSES * _FP32_BYTES * held // _chunk(spec)
    return ACTIVATION_PASSES * _BF16_BYTES * numbers + states


def is_many(value: Any) -> bool:
    """Whether there is one number a candidate."""
    return bool(np.ndim(value))


def _whole(value: Any) -> Any:
    return value if is_many(value) else int(value)
