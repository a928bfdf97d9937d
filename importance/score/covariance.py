"""The covariance of the residual stream: what its directions carry, summed over the norms that read it.

Shape letters: N tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.clock import COVARIANCE
from importance.score.totals import Array, Totals, wide
from minitron.cut.rotation import norms_read, reads_stream
from minitron.cut.scores import Key
from minitron.cut.selection import STREAM
from minitron.model.axes import HIDDEN
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name, norm_module, parameter_name, weight_of

STRIDE: Final = 8
"""At most one token in so many is looked at: neighbours tell little more, and each costs H^2 operations."""

PART: Final = 2**21
"""Weights that are looked at in one go."""

TOKENS_A_CHANNEL: Final = 128
"""Of a longer text so many tokens for each channel are looked at, at every norm."""


@contextmanager
def observing_covariance(model: PreTrainedModel, spec: ModelSpec, totals: Totals, tokens: int = 0) -> Iterator[None]:
    """Until the block ends every forward pass of `model` adds to `totals` what `covariance` makes a matrix of; `tokens`
    is how many the whole run will see, if that is known.

    A norm's part counts by what becomes of an error in it: ||W diag(g)||_F of the linears W that read it, g its gain.
    Weights are read while the norm runs."""
    stride = max(STRIDE, tokens // (TOKENS_A_CHANNEL * spec.sizes[HIDDEN]))
    with ExitStack() as undo:
        for norm in stream_norms(spec):
            module = model.get_submodule(norm_module(norm.rule, norm.layer))
            undo.callback(module.register_forward_hook(_see(model, spec, totals, norm, stride)).remove)
        yield


def covariance(totals: Totals) -> dict[Key, Array]:
    """(axis, None) -> [H, H]: the weighted mean over tokens and norms of x x^T / mean(x^2), x the stream."""
    found = totals["covariance", STREAM] / totals["weight", STREAM]
    return {STREAM: (found + found.T) / 2}


@dataclass(frozen=True)
class StreamNorm:
    """A norm of the residual stream and what reads it."""

    rule: Rule
    layer: int | None

    readers: tuple[Rule, ...]
    """The linears that read it."""


def stream_norms(spec: ModelSpec) -> list[StreamNorm]:
    """Every norm through which the stream is read."""
    found = []
    places: list[tuple[str, int | None]] = [("model", None), *((kind, at) for at, kind in enumerate(spec.layers))]
    for kind, layer in places:
        rules = spec.rules[kind]
        readers = norms_read(rules)
        for rule in rules:
            if reads_stream(rule):
                found.append(StreamNorm(rule, layer, tuple(one for one, read in readers.items() if rule in read)))
    return found


def _see(model: PreTrainedModel, spec: ModelSpec, totals: Totals, norm: StreamNorm, stride: int) -> Any:
    weight: list[float] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        with torch.no_grad(), totals.clock.part(COVARIANCE):
            if not weight:
                weight.append(_sensitivity(model, spec, norm))
            states = normalised(args[0].flatten(0, -2)[::stride])
            totals.add(("covariance", STREAM), (states.T @ states) * weight[0])
            totals.add(("weight", STREAM), torch.tensor(len(states) * weight[0], dtype=torch.float64))

    return hook


def normalised(states: Tensor) -> Tensor:
    """[N, H]: x / rms(x), in fp32 or better."""
    states = states.to(wide(states))
    scale: Tensor = states.square().mean(-1, keepdim=True).clamp_min_(torch.finfo(states.dtype).tiny).rsqrt_()
    return states * scale


def gain_of(model: PreTrainedModel, norm: StreamNorm) -> Tensor:
    """[H]: what a norm multiplies by, in float64."""
    assert norm.rule.norm is not None
    module = model.get_submodule(module_name(norm.rule, norm.layer))
    gain = module.get_parameter(parameter_name(norm.rule, norm.layer)).double()
    found: Tensor = gain + norm.rule.norm.offset if norm.rule.norm.offset else gain
    return found


def _sensitivity(model: PreTrainedModel, spec: ModelSpec, norm: StreamNorm) -> float:
    """||W diag(g)||_F over all linears that read a norm, of experts by the share of tokens that use one."""
    gain, squares = gain_of(model, norm), 0.0
    for rule in norm.readers:
        share = spec.share_routed(norm.layer) if rule.per_expert else 1.0
        squares += float(gain.square() @ _squares(weight_of(model, spec, rule, norm.layer))) * share
    if norm.layer is None and spec.is_tied:
        tied: Tensor = model.get_output_embeddings().weight
        squares += float(gain.square() @ _squares(tied))
    # Only the output layer reads the final norm, and a factor may stand behind it.
    return float(np.sqrt(squares)) * (spec.logit_map.factor if norm.layer is None else 1.0)


def _squares(weight: Tensor) -> Tensor:
    """[..., H] -> [H], float64: the sum of squares over all but the last."""
    rows = weight.flatten(0, -2)
    total = torch.zeros(rows.shape[-1], dtype=torch.float64, device=rows.device)
    # In parts: of a layer's experts a copy in fp32 takes twice the layer.  No part's sum is kept: it would lie in the
    # room that the copy left, and the next copy would find none large enough.
    for part in torch.split(rows, max(1, PART // rows.shape[-1])):
        total += part.float().square().sum(0, dtype=torch.float64)
    return total
