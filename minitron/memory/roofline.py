"""How fast a model serves, by roofline (Williams, Waterman and Patterson 2009): an estimate, never a measurement.

A kernel takes the time of its operations or the time of its bytes, whichever is longer, and no kernel reaches a GPU's
peaks.  With B sequences, P tokens of prompt and N of output each, in seconds:

    operations = 2 * parameters that a token uses, a format at a time, each / (TFLOP/s of the format * efficiency)
    prefill    = B * P * (operations + attention over P / 2 tokens + scan + activations / bandwidth) + overhead
    decode     = max(bytes a step reads / bandwidth, B * operations of a token) + overhead
    throughput = B * N / (prefill + N * decode)

A decode step reads every weight but the input embedding, of a mixture only the experts that some token is sent to; it
reads the keys and values of every sequence at their mean length P + N / 2, and reads and writes their states.  Prompts
are read first and answered together afterwards; a real engine interleaves the two.  Left out: communication between
GPUs, drafted tokens, sampling, queues.

docs/speed.md sets the estimates beside published figures and says which constants were fitted to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, Literal

from minitron.engines.keeping import Kept, LayerCache
from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.gpus import Gpu
from minitron.memory.parallel import per_gpu, require_splits
from minitron.memory.precision import Part, parts_bytes, precision_of, tally_of
from minitron.memory.workload import Workload
from minitron.model.axes import whole
from minitron.model.dims import numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_read

BANDWIDTH_EFFICIENCY: Final = 0.8
"""Share of the peak bandwidth that kernels reach.  Assumed: streaming kernels reach 0.75 to 0.9."""

STEP_OVERHEAD: Final = 0.005
"""Seconds of a step that are neither bytes nor operations: scheduling, launches, sampling.  Assumed."""

MATMUL_EFFICIENCY: Final = {"bf16": 0.75, "fp8": 0.45, "nvfp4": 0.45}
"""Share of the peak TFLOP/s that prefill reaches.  bf16 and fp8 are fitted (docs/speed.md); nobody published what
would fit nvfp4, so it takes fp8's."""

EXPERT_EFFICIENCY: Final = 0.45
"""Speed of the routed experts' grouped matmuls, as a share of that of others.  Fitted (docs/speed.md)."""

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
    """Some of a model's weights."""

    parameters: Mapping[str, int] = field(default_factory=dict)
    """format (minitron.memory.formats.FORMATS) -> how many."""

    bytes: int = 0
    """All together, scales included."""


@dataclass(frozen=True)
class Routed(Weights):
    """The routed experts of layers that have as many of them and send a token to as many."""

    num_experts: int = 0
    """Of one layer."""

    experts_per_token: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.experts_per_token <= self.num_experts:
            raise MinitronError(
                f"a token cannot be routed to {self.experts_per_token} of {self.num_experts} experts; give fewer."
            )

    @property
    def share(self) -> float:
        """Of the experts, those that one token uses."""
        return self.experts_per_token / self.num_experts if self.num_experts else 0.0

    def touched_share(self, tokens: int) -> float:
        """Of the experts, those that some of `tokens` tokens is expected to use where each takes k of E by chance:
        1 - (1 - k / E)^tokens."""
        return 1 - (1 - self.share) ** tokens


@dataclass(frozen=True)
class Window:
    """Layers that attend to a sliding window of the last tokens."""

    tokens: int
    kv_bytes_per_token: int
    operations: int
    """Of a token, for each token that it attends to, all these layers."""


@dataclass(frozen=True)
class Load:
    """What a model costs a GPU, as numbers.  On one GPU where the model is split among several."""

    dense: Weights
    """What every token uses, without the input embedding, of which a token reads one row, and without the head."""

    head: Weights
    """The output head, or the embedding where it serves as the head: every decoded token uses it, and the last token of
    a prompt."""

    experts: tuple[Routed, ...] = ()
    """The routed experts of all layers."""

    kv_bytes_per_token: int = 0
    """Keys and values, all layers that keep the whole context."""

    windows: tuple[Window, ...] = ()
    """The layers that keep a sliding window."""

    state_bytes_per_sequence: int = 0
    """Convolution and SSM states, all layers."""

    attention_operations: int = 0
    """Of a token, for each token that it attends to: 2 * query heads * (width of a key + of a value), all layers that
    keep the whole context."""

    scan_operations: int = 0
    """Of a token in the scan, all layers."""

    activation_bytes: int = 0
    """What a token of a prompt moves through memory beside the matmuls, all layers."""

    def weight_bytes(self, tokens: int) -> float:
        """Bytes of weights that a step with so many tokens reads."""
        routed = sum(experts.bytes * experts.touched_share(tokens) for experts in self.experts)
        return self.dense.bytes + self.head.bytes + routed


@dataclass(frozen=True)
class Speed:
    """How fast a model is expected to serve a workload."""

    prefill_tokens_per_second: float
    """Tokens of prompts, while only prompts are read."""

    decode_tokens_per_second: float
    """Tokens of all sequences, while only answers are written."""

    time_to_first_token: float
    """Seconds, one prompt on an idle GPU."""

    time_per_output_token: float
    """Seconds, all sequences at work."""

    output_tokens_per_second: float
    """Tokens of all answers over the time of prompts and answers."""

    concurrency: int
    """Sequences at work at the same time."""

    bound: Literal["compute", "bandwidth"]
    """What limits a decode step."""

    origin: Literal["estimated"] = "estimated"


@dataclass(frozen=True)
class _Pace:
    """What a GPU really does in a second."""

    gpu: Gpu
    bandwidth: float
    """Bytes."""

    bf16: float
    """Operations."""

    def operations(self, form: str) -> float:
        """Operations with weights in a format.  Formats that the tensor cores do not know are unpacked to bf16 on the
        way: fewer bytes, no more operations.  fp32 runs as TF32, at half of bf16."""
        native = {"fp8": self.gpu.fp8, "fp8-dynamic": self.gpu.fp8, "nvfp4": self.gpu.nvfp4}.get(form)
        if native is not None:
            return native * 1e12 * MATMUL_EFFICIENCY[form.partition("-")[0]]
        return self.bf16 / 2 if form == "fp32" else self.bf16

    def matmul(self, weights: Weights) -> float:
        """Seconds of one token through all of some weights."""
        return sum(2 * count / self.operations(form) for form, count in weights.parameters.items())


def _pace(gpu: Gpu) -> _Pace:
    if gpu.bandwidth is None or gpu.bf16 is None:
        raise MinitronError(
            f"the speed on {gpu.name} cannot be estimated, as only its memory is known; name a GPU such as A10G."
        )
    return _Pace(gpu, gpu.bandwidth * 1e9 * BANDWIDTH_EFFICIENCY, gpu.bf16 * 1e12 * MATMUL_EFFICIENCY["bf16"])


def estimate(load: Load, gpu: Gpu, *, prompt: int, output: int, concurrency: int) -> Speed:
    """The expected speed of `concurrency` sequences of `prompt` tokens that are answered by `output` tokens each.

    Raises MinitronError for a workload without tokens or sequences and for a GPU of which only the memory is known.
    How many sequences fit is minitron.memory.questions.largest_batch's to say."""
    if min(prompt, output, concurrency) < 1:
        raise MinitronError(
            f"speed cannot be estimated for {concurrency} sequences of {prompt} + {output} tokens; "
            "give at least one of each."
        )
    pace = _pace(gpu)
    prefill = _prefill(load, pace, prompt, concurrency)
    by_bytes, by_operations = _decode(load, pace, prompt + output / 2, concurrency)
    step = max(by_bytes, by_operations) + STEP_OVERHEAD
    return Speed(
        prefill_tokens_per_second=concurrency * prompt / prefill,
        decode_tokens_per_second=concurrency / step,
        time_to_first_token=_prefill(load, pace, prompt, 1),
        time_per_output_token=step,
        output_tokens_per_second=concurrency * output / (prefill + output * step),
        concurrency=concurrency,
        bound="bandwidth" if by_bytes >= by_operations else "compute",
    )


def _token(load: Load, pace: _Pace, attended: float) -> float:
    """Seconds of the operations of one token that attends to `attended` tokens, without the head."""
    experts = sum(pace.matmul(each) * each.share for each in load.experts) / EXPERT_EFFICIENCY
    attention = load.attention_operations * attended
    attention += sum(window.operations * min(attended, window.tokens) for window in load.windows)
    rest = attention + load.scan_operations
    return pace.matmul(load.dense) + experts + rest / pace.bf16


def _prefill(load: Load, pace: _Pace, prompt: int, sequences: int) -> float:
    """Seconds to read the prompts.  However short they are, the weights are read once."""
    tokens = sequences * prompt
    token = _token(load, pace, prompt / 2) + load.activation_bytes / pace.bandwidth
    busy = tokens * token + sequences * pace.matmul(load.head)
    return max(busy, load.weight_bytes(tokens) / pace.bandwidth) + STEP_OVERHEAD


def _decode(load: Load, pace: _Pace, context: float, sequences: int) -> tuple[float, float]:
    """Seconds of the bytes and of the operations of one step in which every sequence gains a token."""
    memory = load.kv_bytes_per_token * context + 2 * load.state_bytes_per_sequence
    memory += sum(window.kv_bytes_per_token * min(context, window.tokens) for window in load.windows)
    by_bytes = (load.weight_bytes(sequences) + sequences * memory) / pace.bandwidth
    return by_bytes, sequences * (_token(load, pace, context) + pace.matmul(load.head))


def load_of(spec: ModelSpec, workload: Workload) -> Load:
    """What a model costs when its numbers are kept as `workload` says; context, batch and drafted tokens do not matter.

    Raises MinitronError where the model cannot be split among the workload's GPUs."""
    workload = replace(workload, speculative_tokens=0)
    require_splits(spec, workload.tensor_parallel)
    local = per_gpu(spec, spec.sizes, workload.tensor_parallel)
    dense, head, experts = _groups(spec, workload, local)
    keep = kept(spec, workload, local, spec.kind_counts())
    unwindowed = [one for one in keep.caches if one.window is None]
    return Load(
        dense=dense,
        head=head,
        experts=experts,
        kv_bytes_per_token=sum(int(one.attention * one.token) for one in unwindowed),
        windows=tuple(
            Window(one.window, int(one.attention * one.token), _attention_operations(one))
            for one in keep.caches
            if one.window is not None
        ),
        state_bytes_per_sequence=int(keep.conv_bytes + keep.state_bytes),
        attention_operations=sum(_attention_operations(one) for one in unwindowed),
        scan_operations=sum(_scan_operations(spec, one) for one in keep.caches),
        activation_bytes=_activation_bytes(spec, local, keep),
    )


def _groups(
    spec: ModelSpec, workload: Workload, local: Mapping[str, int]
) -> tuple[Weights, Weights, tuple[Routed, ...]]:
    """The weights as Load groups them, the input embedding left out: dense ones, the head's, those of experts."""
    found = tally_of(spec, precision_of(spec, workload.weights, workload.keep))
    # Experts under how many there are and how many a token is sent to.
    parameters: dict[str | tuple[int, int], dict[str, int]] = {"dense": {}, "head": {}}
    total: dict[str | tuple[int, int], int] = {"dense": 0, "head": 0}
    for name, part, count in _served(spec, local, parts_bytes(spec, found, local)):
        uses, sizes = _uses(spec, part.kind, part.rule), spec.at(part.kind, local)
        numbers = part.count * uses
        for dim in part.rule.matrix:
            numbers *= numel(dim, sizes)
        group: str | tuple[int, int] = name
        if name == "experts":
            group = spec.routed(part.kind)
            numbers *= group[0]
        own = parameters.setdefault(group, {})
        own[part.form.name] = own.get(part.form.name, 0) + int(numbers)
        total[group] = total.get(group, 0) + int(count * uses)
    experts = [Routed(own, total[group], *group) for group, own in parameters.items() if not isinstance(group, str)]
    dense, head = (Weights(parameters[name], total[name]) for name in ("dense", "head"))
    return dense, head, tuple(experts)


def _uses(spec: ModelSpec, kind: str, rule: Rule) -> Fraction:
    """How often a token passes a tensor for every time that it is stored: blocks that layers share are read anew by
    each of them, for nothing of their size stays in a GPU's caches."""
    counts = {"model": 1, **spec.kind_counts()}
    return Fraction(counts[kind] + sum(counts.get(other, 0) for other in rule.also_run_by), counts[kind])


def _served(
    spec: ModelSpec, local: Mapping[str, int], parts: Iterator[tuple[str, Part, int]]
) -> Iterator[tuple[str, Part, int]]:
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


def _attention_operations(one: LayerCache) -> int:
    """Of a token, for each token that it attends to, in all layers that keep this."""
    return 2 * int(one.attention) * _numbers(one, "attends")


def _numbers(one: LayerCache, part: str) -> int:
    dim = one.cache.dim(part)
    return 0 if dim is None else int(numel(dim, one.sizes))


def _chunk(spec: ModelSpec) -> int:
    return next((max(1, whole(key, spec.value(key))) for key in _CHUNK_KEYS if spec.value(key)), CHUNK)


def _scan_operations(spec: ModelSpec, one: LayerCache) -> int:
    """Of a token in the chunked scan (Dao and Gu 2024, section 6), in all layers that keep this: two for each number of
    the state when the chunk's is built and two when it is read, and what attention within the chunk takes, half of
    which the causal mask saves; or RECURRENCE_OPERATIONS of each where the scan knows no chunks."""
    state = _numbers(one, "state")
    if not one.cache.scans:
        return int(one.layers) * RECURRENCE_OPERATIONS * state
    return int(one.layers) * (4 * state + _chunk(spec) * _numbers(one, "scans"))


def _activation_bytes(spec: ModelSpec, local: Mapping[str, int], keep: Kept) -> int:
    """What a token of a prompt moves beside the matmuls: inputs and outputs of projections, states between chunks."""
    numbers, counts = 0, spec.kind_counts()
    for kind, rules in spec.rules.items():
        if kind not in spec.layers:
            continue
        sizes, (_, chosen) = spec.at(kind, local), spec.routed(kind)
        for rule in rules:
            if rule.is_projection:
                times = chosen if rule.per_expert else 1
                passes = int(counts[kind] * _uses(spec, kind, rule))
                numbers += passes * times * sum(int(numel(dim, sizes)) for dim in rule.matrix)
    # A scan without chunks keeps its states where it works.
    held = sum(int(one.layers) * _numbers(one, "state") for one in keep.caches if one.cache.scans)
    states = STATE_PASSES * _FP32_BYTES * held // _chunk(spec)
    return ACTIVATION_PASSES * _BF16_BYTES * numbers + states
