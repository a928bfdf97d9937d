"""ENGINES: a row an engine, with the formats in which it keeps keys and values and the law of its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from minitron.engines import llama_cpp, plain, vllm
from minitron.engines.keeping import Demand, Kept
from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Fact:
    """A number that an engine tells in its log when it loads the model."""

    name: str
    """As a JSON key, which ends in the unit: bytes, tokens, count."""

    label: str
    """In words."""

    value: int
    unit: str
    """tokens, blocks, B; empty for a bare number."""


@dataclass(frozen=True)
class ServingEngine:
    """What serves a model, or `plain` for the sum of what it would hold."""

    name: str
    """As typed."""

    title: str
    """As its makers write it."""

    summary: str
    """Its law in a sentence, for the help."""

    source: str
    """Whose code the law was read in, and the version."""

    utilization: float
    """The share of a GPU that it fills where nobody says otherwise."""

    lines: Callable[[Demand, Kept], dict[str, Any]]
    """Lines of the footprint for what layers keep, by name (minitron.memory.footprint.Footprint)."""

    workspace: Callable[[ModelSpec, Demand, Mapping[str, Any], Mapping[str, Any]], Any]
    """Bytes of activations and buffers, an estimate: of a model's sizes, and of what one GPU holds of them."""

    tell_workspace: Callable[[ModelSpec, Demand, Mapping[str, Any], Any], tuple[str, str, str]]
    """Of that estimate the formula, the formula with its numbers, and where they come from."""

    kv: Mapping[str, str] | None = None
    """Format of keys and values -> the engine's name for it, empty for its default; None where any is counted."""

    kv_on: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Format of keys and values -> the major compute capabilities of the GPUs for which the engine has kernels; every
    GPU runs those that are not here."""

    states: Mapping[str, str] | None = None
    """Format of recurrent states -> the engine's name for it; None where any is counted."""

    files: Literal["any", "safetensors", "gguf"] = "any"
    """The files that it loads."""

    leaves: Mapping[str, str] = field(default_factory=dict)
    """Axis -> why a lattice that nobody names leaves it whole for this engine."""

    step_tokens: int | None = None
    """Tokens of a step where nobody says otherwise; None where that depends on the GPU."""

    tell: Mapping[str, Callable[[Demand, Kept], tuple[str, str, str, str]]] = field(default_factory=dict)
    """Lines of the footprint that it explains itself: formula, the formula with its numbers, origin and note."""

    casts_fp32: bool = False
    """Whether it computes a model whose config says fp32 in 16 bits unless it is told to keep fp32."""

    buffers: Callable[[Demand], dict[str, int]] = lambda demand: {}
    """Lines of the footprint that are its own, whatever the model."""

    facts: Callable[[Demand, Kept, int], tuple[Fact, ...]] = lambda demand, keep, room: ()
    """What its log should say, where `room` bytes are left for what layers keep."""


def _pool_facts(demand: Demand, keep: Kept, room: int) -> tuple[Fact, ...]:
    found = vllm.pool(demand, keep)
    blocks = vllm.blocks_in(found, room)
    return (
        Fact("block_size_tokens", "tokens of a block", int(found.block_size), "tokens"),
        Fact("block_bytes", "bytes of a block", int(found.block), "B"),
        Fact("needed_blocks_count", "blocks that the workload takes", int(found.blocks), "blocks"),
        Fact("budget_blocks_count", "blocks that the budget holds", blocks, "blocks"),
        Fact("pool_tokens", "tokens that they hold", vllm.tokens_in(demand, found, blocks), "tokens"),
    )


def _buffer_facts(demand: Demand, keep: Kept, room: int) -> tuple[Fact, ...]:
    held = llama_cpp.lines(demand, keep)
    states = int(held["conv_state"] + held["ssm_state"])
    return (
        Fact("cells_tokens", "n_ctx_seq", int(llama_cpp.padded(demand.context)), "tokens"),
        Fact("kv_buffer_bytes", "KV buffer size", int(held["kv_cache"] + held["block_rounding"]), "B"),
        *((Fact("rs_buffer_bytes", "RS buffer size", states, "B"),) if states else ()),
    )


ENGINES: Final = {
    engine.name: engine
    for engine in (
        ServingEngine(
            "plain",
            title="no engine",
            summary="the sum of weights, KV cache and states, without an engine's block rounding and buffers",
            source="arithmetic",
            utilization=plain.UTILIZATION,
            lines=plain.lines,
            workspace=plain.workspace,
            tell_workspace=plain.tell_workspace,
        ),
        ServingEngine(
            "vllm",
            title="vLLM",
            summary="memory as vLLM allocates it, with its blocks, buffers and settings",
            source="vLLM 0.32, vllm/v1/core/kv_cache_utils.py",
            utilization=vllm.UTILIZATION,
            lines=vllm.lines,
            workspace=vllm.activations,
            tell_workspace=vllm.tell_workspace,
            files="safetensors",
            kv={"fp32": "", "bf16": "", "fp16": "", "fp8": "fp8", "int8": "int8_per_token_head", "nvfp4": "nvfp4"},
            kv_on={"fp8": (8, 9, 10, 11, 12), "nvfp4": (8, 9, 10, 12)},
            states={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
            casts_fp32=True,
            buffers=vllm.buffers,
            facts=_pool_facts,
        ),
        ServingEngine(
            "llama.cpp",
            title="llama.cpp",
            summary="memory as llama.cpp allocates it, of a GGUF file, its caches and its compute buffer",
            source="llama.cpp b11739, the log of a load",
            utilization=plain.UTILIZATION,
            lines=llama_cpp.lines,
            workspace=llama_cpp.compute_buffer,
            tell_workspace=llama_cpp.tell_workspace,
            kv={"fp16": "f16", "fp32": "f32", "bf16": "bf16", **{name: name for name in llama_cpp.KV_BLOCKS}},
            states={"fp32": "f32"},
            files="gguf",
            leaves={"ssm_state": "its CUDA scan of Mamba-2 knows 128 and 256 states; others run on the CPU"},
            step_tokens=512,
            tell={"block_rounding": llama_cpp.tell_rounding},
            facts=_buffer_facts,
        ),
    )
}
"""Name -> engine."""
