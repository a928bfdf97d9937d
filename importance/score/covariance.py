"""The covariance of the residual stream: what its directions carry, summed over the norms that read it.

Shape letters: N tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.totals import Array, Totals
from minitron.cut.rotation import is_hidden_norm, norms_read
from minitron.cut.scores import Key
from minitron.cut.selection import HIDDEN
from minitron.model.axes import Name
from minitron.model.spec import ModelSpec

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
    stride = max(STRIDE, tokens // (TOKENS_A_CHANNEL * spec.sizes["hidden"]))
    with ExitStack() as undo:
        for gain, readers in _norms(spec).items():
            module = model.get_submodule(gain.removesuffix(".weight"))
            undo.callback(module.register_forward_hook(_see(model, totals, gain, readers, stride)).remove)
        yield


def covariance(totals: Totals) -> dict[Key, Array]:
    """(axis, None) -> [H, H]: the weighted mean over tokens and norms of x x^T / mean(x^2), x the stream."""
    found = totals["covariance", HIDDEN] / totals["weight", HIDDEN]
    return {HIDDEN: (found + found.T) / 2}


def _norms(spec: ModelSpec) -> dict[str, list[tuple[str, float]]]:
    """Norm gain's name -> (parameter in memory, share of tokens that use it) of every linear that reads the norm."""
    found: dict[str, list[tuple[str, float]]] = {}
    places = [("model", {}), *((kind, {"layer": layer}) for layer, kind in enumerate(spec.layers))]
    for kind, index in places:
        rules = spec.rules[kind]
        for rule in rules:
            if is_hidden_norm(rule):
                found[rule.pattern.format(index)] = []
        for rule, norms in norms_read(rules).items():
            routed = "expert" in rule.pattern.axes
            share = spec.experts_per_token / spec.sizes["expert"] if routed else 1.0
            name = Name(rule.name.replace(".{expert}.", ".").removesuffix(".weight") if routed else rule.name)
            for norm in norms:
                found[norm.pattern.format(index)].append((name.format(index), share))
    if spec.is_tied:
        final = next(rule for rule in spec.rules["model"] if is_hidden_norm(rule)).pattern.format({})
        found[final].append((_embedding(spec), 1.0))
    return found


def _embedding(spec: ModelSpec) -> str:
    """The name of the tensor that a tied output layer shares."""
    tied = {rule.tied_to for rule in spec.family.rules["model"] if rule.tied_to}
    return next(rule for rule in spec.rules["model"] if rule.name in tied).pattern.format({})


def _see(model: PreTrainedModel, totals: Totals, gain: str, readers: list[tuple[str, float]], stride: int) -> Any:
    weight: list[float] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        with torch.no_grad():
            if not weight:
                weight.append(_sensitivity(model, model.get_parameter(gain), readers))
            states = args[0].flatten(0, -2)[::stride]
            states = states.to(torch.float64 if states.dtype == torch.float64 else torch.float32)
            scale = states.square().mean(-1, keepdim=True).clamp_min_(torch.finfo(states.dtype).tiny).rsqrt_()
            states = states * scale
            totals.add(("covariance", HIDDEN), (states.T @ states) * weight[0])
            totals.add(("weight", HIDDEN), torch.tensor(len(states) * weight[0], dtype=torch.float64))

    return hook


def _sensitivity(model: PreTrainedModel, gain: Tensor, readers: list[tuple[str, float]]) -> float:
    """||W diag(g)||_F over all linears that read a norm."""
    squares = sum(
        float(gain.double().square() @ _squares(model.get_parameter(name))) * share for name, share in readers
    )
    return float(np.sqrt(squares))


def _squares(weight: Tensor) -> Tensor:
    """[..., H] -> [H], float64: the sum of squares over all but the last."""
    rows = weight.flatten(0, -2)
    # In parts: of a layer's experts a copy in fp32 takes twice the layer.
    parts = torch.split(rows, max(1, PART // rows.shape[-1]))
    return torch.stack([part.float().square().sum(0, dtype=torch.float64) for part in parts]).sum(0)
