"""Compare: several models, or one model on several GPUs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.serving import Serving, model_names

if TYPE_CHECKING:
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Comparison:
    """One model on one GPU."""

    model: str
    """What it is called beside the others."""

    gpu: str
    parameters: int
    weights_bytes: int
    cache_bytes: int
    """Keys and values, states, and what an engine rounds them up by."""

    total_bytes: int
    available_bytes: int
    fits: bool

    longest_context_tokens: int | None
    """None where nothing limits it."""

    largest_batch_sequences: int | None
    """None where nothing limits it."""

    estimated_output_tokens_per_s: float | None
    """Tokens of answers in a second, by roofline; None for what does not fit or a GPU of which only the memory is
    known."""

    cautions: tuple[str, ...]
    """Cautions about the GPU and the workload."""

    def to_json(self) -> dict[str, Any]:
        """A row of the document."""
        return dict(vars(self)) | {"cautions": list(self.cautions)}


def compare(models: Sequence[Path], gpus: Sequence[str], serving: Serving) -> list[Comparison]:
    """What each model takes on each GPU, whether it fits, how far it reaches; reads no weights."""
    from minitron.memory.gpus import find_gpu
    from minitron.model.stored import read_stored_spec

    devices = [find_gpu(name) for name in gpus]
    specs = [read_stored_spec(path) for path in models]
    return [
        _compared(name, spec, gpu, serving)
        for name, spec in zip(model_names(models), specs, strict=True)
        for gpu in devices
    ]


def _compared(name: str, spec: ModelSpec, gpu: Gpu, serving: Serving) -> Comparison:
    from minitron.memory.footprint import footprint
    from minitron.memory.questions import UNLIMITED, cautions, largest_batch, largest_context

    budget, workload = serving.budget_of(gpu), serving.workload_on(spec, gpu)
    found = footprint(spec, workload, budget.workspace)
    reach = (largest_context(spec, workload, budget), largest_batch(spec, workload, budget))
    context, batch = (None if most == UNLIMITED else most for most in reach)
    fits = found.total <= budget.available
    states = found.conv_state + found.ssm_state + found.prefix_states
    return Comparison(
        model=name,
        gpu=gpu.name,
        parameters=spec.parameters().total,
        weights_bytes=found.weights,
        cache_bytes=found.kv_cache + states + found.block_rounding + found.null_block + found.graph_blocks,
        total_bytes=found.total,
        available_bytes=budget.available,
        fits=fits,
        longest_context_tokens=context,
        largest_batch_sequences=batch,
        estimated_output_tokens_per_s=_speed(spec, workload, gpu, serving) if fits else None,
        cautions=tuple(cautions(spec, workload, gpu)),
    )


def _speed(spec: ModelSpec, workload: Workload, gpu: Gpu, serving: Serving) -> float | None:
    from minitron.memory.loads import load_of
    from minitron.memory.roofline import estimate
    from minitron.memory.serving_speed import can_estimate

    if not can_estimate(gpu) or workload.context < 2:
        return None
    prompt = serving.prompt_of(workload.context)
    output = workload.context - prompt
    found = estimate(load_of(spec, workload), gpu, prompt=prompt, output=output, concurrency=workload.batch)
    return found.output_tokens_per_second
