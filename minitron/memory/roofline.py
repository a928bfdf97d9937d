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

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from minitron.errors import MinitronError
from minitron.memory.gpus import Gpu
from minitron.memory.loads import Load, Weights, is_many

BANDWIDTH_EFFICIENCY: Final = 0.8
"""Share of the peak bandwidth that kernels reach.  Assumed: streaming kernels reach 0.75 to 0.9."""

STEP_OVERHEAD: Final = 0.005
"""Seconds of a step that are neither bytes nor operations: scheduling, launches, sampling.  Assumed."""

MATMUL_EFFICIENCY: Final = {"bf16": 0.75, "fp8": 0.45, "nvfp4": 0.45}
"""Share of the peak TFLOP/s that prefill reaches.  bf16 and fp8 are fitted (docs/speed.md); nobody published what
would fit nvfp4, so it takes fp8's."""

EXPERT_EFFICIENCY: Final = 0.45
"""Speed of the routed experts' grouped matmuls, as a share of that of others.  Fitted (docs/speed.md)."""

ERROR: Final = (
    "estimated by roofline: within 10 % of nine published throughputs on an H100, 31 % too slow at worst where weights "
    "fill the GPU, elsewhere unchecked"
)
"""How far off an estimate was, as docs/speed.md says."""


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

    def matmul(self, weights: Weights) -> Any:
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
    step = _larger(by_bytes, by_operations) + STEP_OVERHEAD
    return Speed(
        prefill_tokens_per_second=concurrency * prompt / prefill,
        decode_tokens_per_second=concurrency / step,
        time_to_first_token=_prefill(load, pace, prompt, 1),
        time_per_output_token=step,
        output_tokens_per_second=concurrency * output / (prefill + output * step),
        concurrency=concurrency,
        bound="bandwidth" if by_bytes >= by_operations else "compute",
    )


def answer_seconds(load: Load, gpu: Gpu, *, prompt: int, output: int, concurrency: int) -> Any:
    """Seconds until `concurrency` prompts that come together are read and answered, of one load or of many."""
    pace = _pace(gpu)
    step = _larger(*_decode(load, pace, prompt + output / 2, concurrency)) + STEP_OVERHEAD
    return _prefill(load, pace, prompt, concurrency) + output * step


def _larger(first: Any, second: Any) -> Any:
    return np.maximum(first, second) if is_many(first) or is_many(second) else max(first, second)


def _token(load: Load, pace: _Pace, attended: float) -> Any:
    """Seconds of the operations of one token that attends to `attended` tokens, without the head."""
    experts = sum(pace.matmul(each) * each.share for each in load.experts) / EXPERT_EFFICIENCY
    attention = load.attention_operations * attended
    attention += sum(window.operations * min(attended, window.tokens) for window in load.windows)
    rest = attention + load.scan_operations
    return pace.matmul(load.dense) + experts + rest / pace.bf16


def _prefill(load: Load, pace: _Pace, prompt: int, sequences: int) -> Any:
    """Seconds to read the prompts.  However short they are, the weights are read once."""
    tokens = sequences * prompt
    token = _token(load, pace, prompt / 2) + load.activation_bytes / pace.bandwidth
    busy = tokens * token + sequences * pace.matmul(load.head)
    return _larger(busy, load.weight_bytes(tokens) / pace.bandwidth) + STEP_OVERHEAD


def _decode(load: Load, pace: _Pace, context: float, sequences: int) -> tuple[Any, Any]:
    """Seconds of the bytes and of the operations of one step in which every sequence gains a token."""
    memory = load.kv_bytes_per_token * context + 2 * load.state_bytes_per_sequence
    memory += sum(window.kv_bytes_per_token * min(context, window.tokens) for window in load.windows)
    by_bytes = (load.weight_bytes(sequences) + sequences * memory) / pace.bandwidth
    return by_bytes, sequences * (_token(load, pace, context) + pace.matmul(load.head))
