"""FP8 teachers: how fast one runs beside itself in bf16, and how far it drifts.  Part `fp8` of gpu.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_setting import NEEDS_GPU, Row, Setting, allocated, bytes_row, forget, llama, seconds_of
from random_checkpoint import make
from torch import nn

from distill.teacher.drift import Drift
from distill.teacher.e4m3 import quantise
from distill.teacher.fp8_linear import Fp8Linear, multiplies_in_fp8
from distill.teacher.kept import Kept
from distill.teacher.loading import load_teacher
from minitron import builtin
from minitron.measure.quality import hidden_states
from minitron.measure.text import token_blocks
from minitron.model.loading import load_tokenizer

EVERYTHING = Kept(attention=False, before_attention=False)


def fp8(setting: Setting) -> Iterator[Row]:
    """One product; a dense model with random weights; the built-in model, whose weights are trained."""
    yield from _product(setting)
    yield from _whole_model(setting)
    samples, length = (2, 64) if setting.tiny else (64, 512)
    blocks = token_blocks(load_tokenizer(builtin.MODEL), builtin.HELDOUT, sequence_length=length, samples=samples)
    found = load_teacher(builtin.MODEL, precision="fp8", device=setting.place, blocks=blocks, batch_size=4)
    assert found.drift is not None
    yield from _drift("the built-in model", found.drift, _count(found.model))


def _product(setting: Setting) -> Iterator[Row]:
    """One linear of an MLP of Llama 3.1 8B."""
    tokens, inputs, outputs = (64, 64, 128) if setting.tiny else (8192, 4096, 14_336)
    names = [f"{tokens:,} x {inputs:,} x {outputs:,}, {way}" for way in ("bf16", "_scaled_mm alone", "Fp8Linear")]
    place = setting.place
    if not setting.on_gpu:
        yield from (Row(name, None, "TFLOP/s", NEEDS_GPU) for name in names)
        return
    linear = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device=place).requires_grad_(False)
    if not multiplies_in_fp8(linear):
        yield from (Row(name, None, "TFLOP/s", "this GPU has no FP8 matmuls") for name in names)
        return
    states = torch.randn(tokens, inputs, dtype=torch.bfloat16, device=place)
    in_fp8 = Fp8Linear(linear)
    numbers, scale = quantise(states)
    weight, weight_scale = in_fp8.weight_fp8.t(), in_fp8.weight_scale.t().contiguous()

    def alone() -> None:
        torch._scaled_mm(numbers, weight, scale_a=scale, scale_b=weight_scale, out_dtype=torch.bfloat16)

    works = (lambda: linear(states), alone, lambda: in_fp8(states))
    for name, work in zip(names, works, strict=True):
        taken = seconds_of(work, place, 20)
        yield Row(name, 2e-12 * tokens * inputs * outputs / taken, "TFLOP/s", f"{1e3 * taken:.3f} ms")
    apart = (in_fp8(states).float() - linear(states).float()).norm() / linear(states).float().norm()
    yield Row("its relative error", float(apart))


def _whole_model(setting: Setting) -> Iterator[Row]:
    place, folder = setting.place, setting.work / "fp8"
    config: dict[str, Any] = llama(4096, 14_336, 8, (32, 8, 128), 32_768)
    sequences, length = 4, 2048
    if setting.tiny:
        config, sequences, length = llama(64, 128, 2, (4, 2, 16), 2048), 2, 32
    make(folder, config)
    blocks = np.random.default_rng(0).integers(3, config["vocab_size"], (sequences, length))
    ids = torch.from_numpy(blocks)
    speeds = {}
    for precision in ("bf16", "fp8"):
        before = allocated(place)
        found = load_teacher(
            folder,
            precision=precision,
            keep=EVERYTHING,
            device=place,
            blocks=blocks,
            batch_size=1 if setting.tiny else 4,
        )
        model = found.model
        held = allocated(place) - before if setting.on_gpu else None
        with torch.inference_mode():
            speeds[precision] = seconds_of(lambda model=model: hidden_states(model, ids), place, 3)
        name = f"random dense model of {len(model.model.layers)} layers, hidden {config['hidden_size']:,}, {precision}"
        yield Row(f"{name}: forward", blocks.size / speeds[precision], "tokens/s", f"{blocks.size:,} tokens")
        yield bytes_row(f"{name}: weights", held)
        if found.drift is not None:
            yield from _drift("random dense model", found.drift, _count(model))
        del found, model
        forget(place)
    yield Row("fp8 / bf16, tokens/s", speeds["bf16"] / speeds["fp8"])


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, Fp8Linear) for module in model.modules())


def _drift(name: str, drift: Drift, linears: int) -> Iterator[Row]:
    how = f"{linears} linears multiply in FP8" if linears else "weights alone are in FP8 on this device"
    yield Row(f"{name}: drift, KL", drift.kl, "nats", f"{drift.tokens:,} tokens, {drift.weights} weights; {how}")
    yield Row(f"{name}: same likeliest next token", drift.top1_agreement)
