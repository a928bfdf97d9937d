"""Serving speed of several models by concurrency: the roofline's estimates as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minitron.memory.budget import Budget
from minitron.memory.gpus import Gpu
from minitron.memory.loads import load_of
from minitron.memory.questions import UNLIMITED, largest_batch
from minitron.memory.roofline import estimate
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec


def can_estimate(gpu: Gpu | None) -> bool:
    """Whether the GPU's bandwidth and operations are known."""
    return gpu is not None and gpu.bandwidth is not None and gpu.bf16 is not None


def concurrencies(largest: int, batch: int) -> list[int]:
    """1, 4, 16, ... up to the largest that fits, that one and the workload's own batch."""
    if not 0 < largest < UNLIMITED:
        return []
    powers = [4**n for n in range(8) if 4**n < largest]
    return sorted({*powers, largest, *([batch] if batch <= largest else [])})


def speed_document(
    models: Mapping[str, ModelSpec],
    workload: Workload,
    budget: Budget,
    prompt: int,
    own: Mapping[str, Workload] | None = None,
) -> dict[str, Any] | None:
    """The `speed` part of a report: a row for each model and concurrency that fits; None on an unknown GPU.

    `models`: label -> model; `own`: label -> the workload of a model that is kept in formats of its own.  A
    sequence reads `prompt` tokens of the workload's context and writes the rest."""
    gpu = budget.gpu
    if gpu is None or not can_estimate(gpu):
        return None
    rows = []
    for label, spec in models.items():
        kept = (own or {}).get(label, workload)
        load = load_of(spec, kept)
        for concurrency in concurrencies(largest_batch(spec, kept, budget), workload.batch):
            speed = estimate(load, gpu, prompt=prompt, output=workload.context - prompt, concurrency=concurrency)
            rows.append(
                {
                    "label": label,
                    "batch_sequences": concurrency,
                    "decode_tokens_per_s": speed.decode_tokens_per_second,
                    "prefill_tokens_per_s": speed.prefill_tokens_per_second,
                    "output_tokens_per_s": speed.output_tokens_per_second,
                    "first_token_s": speed.time_to_first_token,
                    "output_token_s": speed.time_per_output_token,
                    "bound": speed.bound,
                }
            )
    if not rows:
        return None
    note = (
        f"Estimated by roofline, not measured: prompts of {prompt:,} tokens, outputs of {workload.context - prompt:,}."
    )
    return {"note": note, "rows": rows}
