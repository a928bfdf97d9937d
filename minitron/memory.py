"""The memory that a model takes while it serves: weights, KV cache, Mamba states, workspace.

The plain law is the sum of what the model holds and what its sequences keep, nothing rounded to an engine's blocks:

    weights     every parameter and buffer, without the multi-token-prediction block, which engines load on request only
    KV cache    attention layers x tokens x sequences x keys and values of a token
    conv state  Mamba layers x sequences x (conv_kernel - 1) inputs of every convolution channel
    SSM state   Mamba layers x sequences x heads x head width x state size
    workspace   activations and buffers: a stated number, no part of the law

All numbers are bytes.  A sliding window is not counted: every attention layer keeps the whole context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from minitron.axes import numel
from minitron.errors import MinitronError
from minitron.gpus import Gpu
from minitron.spec import ModelSpec
from minitron.units import GiB, format_bytes

DTYPE_BYTES: Final[dict[str, int]] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""How many bytes one number takes.  The plain law keeps every parameter alike; scales are not counted."""

UTILIZATION: Final = 0.95
"""The share of a GPU that a budget takes where nobody says otherwise: the rest is the driver's and the allocator's."""

WORKSPACE: Final = round(0.65 * GiB)
"""Activations and buffers where nobody says otherwise: an estimate, in the middle of the 0.5 to 0.8 GiB that make the
published choice of Nemotron Nano 2 come out.  Engines report 0.8 to 2.5 GiB at their default batch sizes."""

STATE_DTYPES: Final = ("fp32", "bf16", "fp16")
"""What a recurrent state can be kept in: no engine has a narrower one."""

# As configs write them.
_CONFIG_DTYPES: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Workload:
    """What the model is to serve, and how its numbers are kept."""

    context: int
    """Tokens of one sequence, prompt and answer together."""

    batch: int = 1
    """Sequences at the same time."""

    weights: str = "bf16"
    """A name in DTYPE_BYTES, as are the others."""

    kv: str = "bf16"
    """Keys and values of attention."""

    ssm_state: str = "fp32"
    """The recurrent state of Mamba layers.  Engines keep it in fp32 where the config does not say otherwise: it is
    written again at every token, and rounding adds up."""

    conv_state: str = "bf16"
    """The last inputs of the convolution in Mamba layers."""

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1:
            raise MinitronError(
                f"a workload of {self.context} tokens x {self.batch} sequences is empty; give at least one of each."
            )
        for what, known in (
            ("weights", tuple(DTYPE_BYTES)),
            ("kv", tuple(DTYPE_BYTES)),
            ("ssm_state", STATE_DTYPES),
            ("conv_state", STATE_DTYPES),
        ):
            if getattr(self, what) not in known:
                raise MinitronError(f"{what} cannot be kept in {getattr(self, what)}; choose {', '.join(known)}.")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


def workload_of(
    spec: ModelSpec,
    context: int,
    batch: int = 1,
    *,
    weights: str | None = None,
    kv: str | None = None,
    ssm_state: str | None = None,
    conv_state: str | None = None,
) -> Workload:
    """A workload in which the model's config decides what is left open.

    Weights take the dtype that the config names, else bf16; keys, values and convolution states the dtype in which
    activations are computed, which is that of the weights unless those are quantised; the SSM state
    `mamba_ssm_cache_dtype`, else fp32."""
    config = spec.config
    weights = weights or _CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16")
    computed = weights if weights in STATE_DTYPES else "bf16"
    stated = _CONFIG_DTYPES.get(str(config.get("mamba_ssm_cache_dtype")), "fp32")
    return Workload(context, batch, weights, kv or computed, ssm_state or stated, conv_state or computed)


@dataclass(frozen=True)
class Budget:
    """The bytes there are."""

    usable: int
    """What the device has for software."""

    utilization: float = 1.0
    """The share of it that may be used."""

    reserve: int = 0
    """What something else needs, such as a vision encoder."""

    workspace: int = 0
    """What activations and buffers take: a line of the footprint, so not subtracted here."""

    gpu: Gpu | None = None
    """The device, where it is known."""

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise MinitronError(f"a utilization of {self.utilization} is no share of memory; give one from 0 to 1.")
        if self.reserve < 0 or self.workspace < 0:
            raise MinitronError("the reserve and the workspace cannot be negative; give 0 or more.")
        if self.available <= 0:
            raise MinitronError(
                f"nothing is left of {format_bytes(self.usable)} x {self.utilization} after a reserve of "
                f"{format_bytes(self.reserve)}; reserve less or take a larger GPU."
            )

    @property
    def available(self) -> int:
        """What a footprint may come to."""
        return int(self.usable * self.utilization) - self.reserve

    def to_json(self) -> dict[str, Any]:
        """The terms by name, without the device."""
        terms = {name: getattr(self, name) for name in ("usable", "utilization", "reserve", "workspace")}
        return terms | {"available": self.available}


@dataclass(frozen=True)
class Footprint:
    """Where the bytes go.  Whole numbers, or arrays with one number a candidate."""

    weights: Any
    kv_cache: Any
    conv_state: Any
    ssm_state: Any
    workspace: Any

    @property
    def lines(self) -> dict[str, Any]:
        """The terms by name, in the order in which they are told."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> Any:
        """The sum of all lines."""
        return sum(self.lines.values())

    def to_json(self) -> dict[str, int]:
        """The lines and their total."""
        return {name: int(value) for name, value in (self.lines | {"total": self.total}).items()}


def footprint(
    spec: ModelSpec,
    workload: Workload,
    workspace: int = 0,
    sizes: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
) -> Footprint:
    """The bytes that a model takes, exact for the plain law.

    `sizes` (axis -> size) and `counts` (layer kind -> layers) stand in for the model's own: as numpy arrays of int64
    they count many candidates at once.  The state of a Mamba-2 layer (Dao and Gu 2024) is heads x head width
    x state size numbers, beside the last conv_kernel - 1 inputs of x, B and C."""
    sizes = dict(spec.sizes) | dict(sizes or {})
    counts = dict(spec.kind_counts()) | dict(counts or {})
    numbers: dict[str, Any] = {"kv_per_token": 0, "conv_channels": 0, "ssm_state": 0}
    for kind, cache in spec.family.cache.items():
        for part in numbers:
            dim = cache.dim(part)
            if dim is not None and kind in spec.layers:
                numbers[part] = numbers[part] + counts[kind] * numel(dim, sizes)
    columns = sizes["conv_kernel"] - 1 if "conv_kernel" in sizes else 0
    batch = workload.batch
    return Footprint(
        weights=spec.parameters(sizes, counts).total * DTYPE_BYTES[workload.weights],
        kv_cache=numbers["kv_per_token"] * (workload.context * batch * DTYPE_BYTES[workload.kv]),
        conv_state=numbers["conv_channels"] * columns * (batch * DTYPE_BYTES[workload.conv_state]),
        ssm_state=numbers["ssm_state"] * (batch * DTYPE_BYTES[workload.ssm_state]),
        workspace=workspace,
    )
