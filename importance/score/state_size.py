"""Scores of a Mamba mixer's states: the energy of each state's part of the output.

State n of a head holds h_n(t) = exp(dt_t A) h_n(t-1) + dt_t B_n(t) x(t); the head reads y(t) = sum over n of
C_n(t) h_n(t) + D x(t) (Dao and Gu 2024, Mamba-2, arXiv 2405.21060, equation 1).  A state counts by the energy of its
part of y.  B and C are made of in_proj's output alone, so that one hook sees all of it whatever kernel runs the scan.

Shape letters: B sequences, W tokens of a window, R of them at which states are read, H heads of P channels, G groups
of N states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from importance.score.clock import STATES
from importance.score.totals import Array, Totals, wide
from minitron.cut.scores import Key
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name

STATE: Final = "ssm_state"
"""What the states of a mixer are called."""

WINDOW: Final = 128
"""Tokens at the end of a sequence over which states are summed up from zero: older ones have faded."""

READS: Final = 4
"""Tokens of a window at which states are read, the last one among them."""


@dataclass(frozen=True)
class StateSite:
    """One Mamba mixer."""

    key: Key
    mixer: str
    """The module that holds in_proj, conv1d and the parameters of the scan."""


def state_sites(spec: ModelSpec) -> Iterator[StateSite]:
    """Every Mamba-2 mixer whose number of states a plan may change."""
    if STATE not in spec.sizes or STATE in spec.family.fixed:
        return
    for layer, kind in enumerate(spec.layers):
        for rule in spec.rules[kind]:
            # In the first Mamba every channel has a time step of its own, and no heads share B and C.
            if rule.scan_input is not None and STATE in rule.axes:
                yield StateSite((STATE, layer), module_name(rule, layer).rpartition(".")[0])


@contextmanager
def observing_states(model: PreTrainedModel, spec: ModelSpec, totals: Totals) -> Iterator[None]:
    """Until the block ends every forward pass of `model` adds to `totals` what `state_scores` needs."""
    with ExitStack() as undo:
        for site in state_sites(spec):
            mixer = model.get_submodule(site.mixer)
            undo.callback(mixer.get_submodule("in_proj").register_forward_hook(_hook(site, spec, mixer, totals)).remove)
        yield


def state_scores(totals: Totals, site: StateSite) -> Array:
    """[N]: the root of the mean energy, over tokens, heads and channels, of a state's part of y; one for all groups,
    which share their states' number and places."""
    scores: Array = (totals["states", site.key] / totals["reads", site.key]) ** 0.5
    return scores


def _hook(site: StateSite, spec: ModelSpec, mixer: nn.Module, totals: Totals) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        with torch.no_grad(), totals.clock.part(STATES):
            # Falcon-H1 scales the parts of what in_proj makes.
            projected = output.detach() * getattr(mixer, "mup_vector", 1.0)
            energies = state_energies(mixer, spec, projected)
            totals.add(("states", site.key), energies)
            totals.add(("reads", site.key), torch.tensor(float(output.shape[0] * min(READS, output.shape[1]))))

    return hook


def state_energies(mixer: nn.Module, spec: ModelSpec, projected: Tensor) -> Tensor:
    """[B, T, in_proj's outputs] -> [N]: sum over read tokens, heads and channels of (C_n h_n)^2."""
    heads, width = spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"]
    groups, count, inner = spec.sizes["mamba_group"], spec.sizes[STATE], heads * width
    conv = mixer.get_submodule("conv1d")
    weight = conv.get_parameter("weight").float()
    tail = projected[:, -(WINDOW + weight.shape[-1] - 1) :].to(wide(projected))
    mixed, times = tail[..., inner : 2 * inner + 2 * groups * count], tail[..., -heads:]
    bias = conv.bias.to(tail.dtype) if isinstance(conv.bias, Tensor) else None
    mixed = functional.silu(_convolved(mixed.mT, weight.to(mixed.dtype), bias).mT)[:, -WINDOW:]
    x, b, c = torch.split(mixed, [inner, groups * count, groups * count], -1)
    window = x.shape[1]
    steps = functional.softplus(times[:, -window:] + mixer.get_parameter("dt_bias").float())
    # As transformers clamps them: the limit of softplus is (0, inf) unless the config says otherwise.
    steps = steps.clamp(*getattr(mixer, "time_step_limit", (0.0, float("inf"))))
    logs = (steps * -mixer.get_parameter("A_log").float().exp()).cumsum(1)
    places = torch.linspace(window, 0, min(READS, window) + 1, device=x.device)[:-1].ceil().long() - 1
    later = torch.arange(window, device=x.device) <= places[:, None]
    faded = (logs[:, places, None] - logs[:, None]).masked_fill(~later[None, :, :, None], float("-inf")).exp()
    taken = (faded * steps[:, None]).to(x.dtype)
    b, c = (part.reshape(*part.shape[:2], groups, count) for part in (b, c))
    weighted, x = taken.reshape(*taken.shape[:3], groups, -1), x.reshape(*x.shape[:2], groups, -1, width)
    energies: Tensor = x.new_zeros(count)
    for group in range(groups):
        # [B, R, W, h, 1] * [B, 1, W, h, P], h the heads of a group: what each token adds to what is read later.
        entered = weighted[:, :, :, group, :, None] * x[:, None, :, group]
        # [B, 1, N, W] x [B, R, W, h * P]
        held = b[:, :, group].mT[:, None] @ entered.flatten(-2)
        energies += (c[:, places, group].square() * held.square().sum(-1)).sum((0, 1))
    return energies


def _convolved(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A causal convolution, each channel by itself: [B, C, W] -> [B, C, W]."""
    reach = weight.shape[-1] - 1
    mixed: Tensor = functional.conv1d(functional.pad(rows, (reach, 0)), weight, bias, groups=rows.shape[1])
    return mixed
