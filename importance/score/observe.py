"""Hooks that feed streaming sums while a model runs, and the scores that follow from the sums.

A caller enters `observing`, runs the model however it likes and reads `importance` and `energy` from the totals.  A
model may also be run layer by layer, each layer while its weights are in memory: the totals are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from importance.score.clock import CHANNELS, Clock
from importance.score.estimators import ACTIVATION, ByAxis, Estimator
from importance.score.experts import expert_scores, observed_experts
from importance.score.moments import Moments
from importance.score.observed_modules import ChannelSite, NormSite, channel_sites, expert_sites, norm_sites
from importance.score.totals import Array, Batch, Totals, dissimilarity, energy_shares
from minitron.cut.scores import Key
from minitron.cut.selection import STREAM
from minitron.model.axes import EXPERT, HIDDEN
from minitron.model.layer_by_layer import states_of
from minitron.model.layerwise import layers_module
from minitron.model.spec import ModelSpec

See = Callable[[tuple[Any, ...], Any], None]
"""Looks at a module's arguments and its output (None while the module has not run)."""


@contextmanager
def observing(
    model: PreTrainedModel,
    spec: ModelSpec,
    totals: Totals,
    *,
    estimator: Estimator | ByAxis = ACTIVATION,
    influence: bool = False,
    moments: Moments | None = None,
) -> Iterator[None]:
    """Until the block ends every forward pass of `model` on sequences [B, T] adds to `totals`; its output is the same.

    Channels are looked at as `estimator` asks; weights are read while the module that holds them runs.  `influence`
    also compares what goes into a layer with what comes out; `moments` takes the second moments of what linears read.
    Raises ValueError for a model in training mode, where fused kernels bypass the modules that are observed."""
    if model.training:
        raise ValueError("a model is observed in eval mode only")
    batch = Batch()

    with ExitStack() as undo:

        def watch(name: str, see: See, *, before: bool = False) -> None:
            undo.callback(_listen(model.get_submodule(name), see, totals.clock, before=before).remove)

        for layer in range(len(spec.layers)):
            watch(f"{layers_module(spec)}.{layer}", _sees_batch(batch), before=True)
            if influence:
                watch(f"{layers_module(spec)}.{layer}", _sees_layer(totals, layer))
        for site in channel_sites(spec):
            module = model.get_submodule(site.module)
            watch(
                site.module,
                _sees_channels(totals, site, batch, estimator.of(site.key[0]), module),
                before=site.side == "input",
            )
        for norm in norm_sites(spec):
            watch(norm.module, _sees_norm(totals, norm, batch, estimator.of(HIDDEN).hidden))
        for expert in expert_sites(spec):
            experts = model.get_submodule(expert.module)
            undo.enter_context(observed_experts(expert, experts, totals, batch, estimator.of(expert.axis), moments))
        if moments is not None:
            undo.enter_context(moments.observing(model, totals))
        yield


def importance(
    spec: ModelSpec, totals: Totals, *, estimator: Estimator | ByAxis = ACTIVATION, seed: int = 0
) -> dict[Key, Array]:
    """The scores of every axis but `layer`, by the keys of minitron.cut.scores.Scores.

    `estimator` is the one that observed, and scores all channels but hidden ones where it needs weights
    (Estimator.hidden); routed experts as a whole are scored by REAP.  `seed` is that of its random numbers."""
    random = np.random.default_rng(seed)
    found: dict[Key, Array] = {STREAM: _hidden(spec, totals, estimator.of(HIDDEN).hidden, random)}
    for site in channel_sites(spec):
        scores = estimator.of(site.key[0]).scores(totals, site, (prod(site.shape),), random).reshape(site.shape)
        # A head counts as the L2 over its channels; those of Mamba stay apart, for channels are chosen before heads.
        joint = site.key[0] not in spec.sizes
        found[site.key] = scores if joint or len(site.shape) == 1 else np.linalg.norm(scores, axis=-1)
    for expert in expert_sites(spec):
        found[EXPERT, expert.layer] = expert_scores(expert, totals)
        sizes, judge = spec.sizes_in(expert.layer), estimator.of(expert.axis)
        shape = (sizes[EXPERT], sizes[expert.axis])
        found[expert.axis, expert.layer] = judge.scores(totals, expert.channels, shape, random)
    return found


def energy(spec: ModelSpec, totals: Totals) -> dict[str, Array]:
    """Norm gain's name -> [channels]: mean over tokens of x_c^2 / mean over the norm's group of x^2."""
    return {norm.gain: totals["energy", norm] / totals["tokens", norm] for norm in norm_sites(spec)}


def block_influence(spec: ModelSpec, totals: Totals) -> Array:
    """[layers]: mean over tokens of 1 - cosine(input, output)."""
    means = [totals["influence", layer] / totals["tokens", layer] for layer in range(len(spec.layers))]
    # A cosine may be rounded to a hair above one.
    return np.maximum(np.array(means, dtype=np.float64), 0.0)


def _hidden(spec: ModelSpec, totals: Totals, estimator: Estimator, random: np.random.Generator) -> Array:
    """[hidden]: the square root of the sum over norms of the squared scores.

    The L2 over samples that A is (see importance.score.estimators) goes on over norms: each is one more reading of the
    same channel, and a channel that one block reads strongly is not averaged away by the many that do not."""
    shape = (spec.sizes[HIDDEN],)
    readings = [estimator.scores(totals, norm, shape, random) for norm in norm_sites(spec) if norm.makes_hidden]
    combined: Array = np.sqrt(np.square(readings).sum(0))
    return combined


def _listen(module: torch.nn.Module, see: See, clock: Clock, *, before: bool) -> RemovableHandle:
    """A hook that calls `see` before or after the module runs."""

    def pre_hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        with torch.no_grad(), clock.part(CHANNELS):
            see(args, None)

    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with torch.no_grad(), clock.part(CHANNELS):
            see(args, output)

    return module.register_forward_pre_hook(pre_hook) if before else module.register_forward_hook(hook)


def _sees_batch(batch: Batch) -> See:
    def see(args: tuple[Any, ...], output: None) -> None:
        batch.sequences = args[0].shape[0]

    return see


def _sees_channels(
    totals: Totals, site: ChannelSite, batch: Batch, estimator: Estimator, module: torch.nn.Module
) -> See:
    columns = slice(site.start, site.start + prod(site.shape))

    def see(args: tuple[Any, ...], output: Tensor | None) -> None:
        activations: Tensor = args[0] if output is None else output

        def shaped(seen: Tensor) -> Tensor:
            # The modules around routed experts are given the tokens of all sequences in one row.
            return seen.reshape(sequences, -1, seen.shape[-1])[..., columns]

        sequences = batch.sequences
        estimator.see(totals, site, activations, shaped)
        if estimator.reads_weights:
            weight = module.get_parameter(site.weight)
            if site.side == "input":
                estimator.see_weights(totals, site, weight[..., columns], tuple(range(weight.ndim - 1)))
            else:
                estimator.see_weights(totals, site, weight[columns], (1,))

    return see


def _sees_norm(totals: Totals, norm: NormSite, batch: Batch, estimator: Estimator) -> See:
    def see(args: tuple[Any, ...], output: Tensor) -> None:
        if norm.makes_hidden:
            estimator.see(totals, norm, output, partial(_by_sequence, batch.sequences))
        gate = args[1] if len(args) > 1 and not norm.gated_after else None
        states = args[0] - args[0].mean(-1, keepdim=True) if norm.centred else args[0]
        totals.add(("energy", norm), energy_shares(states, gate, norm.groups))
        totals.add(("tokens", norm), torch.tensor(output.shape[:-1].numel()))

    return see


def _by_sequence(sequences: int, seen: Tensor) -> Tensor:
    """[B, T, H]; norms before routed experts are given the tokens of all sequences in one row."""
    return seen if seen.ndim > 2 else seen.reshape(sequences, -1, seen.shape[-1])


def _sees_layer(totals: Totals, layer: int) -> See:
    def see(args: tuple[Any, ...], output: Any) -> None:
        states = states_of(output)
        totals.add(("influence", layer), dissimilarity(args[0], states))
        totals.add(("tokens", layer), torch.tensor(states.shape[:-1].numel()))

    return see
