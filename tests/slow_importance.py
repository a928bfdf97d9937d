"""Importance in plain loops and float64: rewrites that the tests compare with, and short ways to score a tiny model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from minitron.cut.scores import Scores
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec

Array = NDArray[np.float64]

SEQUENCES, TOKENS = 5, 24

# What the tiny models are made of, written out so that the rewrites below share nothing with the code under test.
HEADS, GROUPS, EXPERTS, CHOSEN, SCALING = 8, 2, 6, 2, 1.5
MAMBA, ATTENTION, MLP, MOE = (0, 2, 5), (3, 7), (4,), (1, 6)


def blocks_of(count: int = SEQUENCES, *, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 300, (count, TOKENS))


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, ModelSpec]:
    return load_model(folder, dtype=dtype, device=torch.device("cpu")), read_spec(folder)


@contextmanager
def recording(model: nn.Module, *names: str) -> Iterator[dict[str, tuple[Any, ...]]]:
    """name -> (inputs..., output) of those modules in the last forward pass, as numpy float64."""
    seen: dict[str, tuple[Any, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[name] = tuple(
                part.detach().double().numpy() for part in (*args, output) if isinstance(part, torch.Tensor)
            )

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    yield seen
    for handle in handles:
        handle.remove()


def record(model: PreTrainedModel, blocks: NDArray[np.int64], *names: str) -> dict[str, tuple[Array, ...]]:
    with recording(model, *names) as seen, torch.no_grad():
        model(input_ids=torch.from_numpy(blocks), use_cache=False)
    return seen


def slow_importance(activations: Array) -> Array:
    """[S, T, C] -> [C]."""
    samples, tokens, channels = activations.shape
    scores = np.zeros(channels)
    for channel in range(channels):
        for sample in range(samples):
            scores[channel] += (sum(abs(activations[sample, t, channel]) for t in range(tokens)) / tokens) ** 2
    return np.sqrt(scores)


def slow_energy(inputs: Array, groups: int) -> Array:
    """[S, T, C] -> [C]."""
    samples, tokens, channels = inputs.shape
    width, total = channels // groups, np.zeros(channels)
    for sample in range(samples):
        for t in range(tokens):
            for channel in range(channels):
                group = slice(channel // width * width, channel // width * width + width)
                total[channel] += inputs[sample, t, channel] ** 2 / np.mean(inputs[sample, t, group] ** 2)
    return total / (samples * tokens)


def quick(model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64], **options: Any) -> Scores:
    asked = {"layers": "none", "batch_size": 2, "estimator": "activation"} | options
    return score_model(model, spec, blocks, ScoringOptions(**asked))


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)


def slow_routing(model: PreTrainedModel, layer: int, states: Array) -> tuple[NDArray[np.int64], Array]:
    """[S, T, H] -> [S, T, k] experts and weights: DeepSeek-V3's router, one group."""
    gate = model.get_submodule(f"model.layers.{layer}.mixer.gate")
    weight, bias = (tensor.detach().double().numpy() for tensor in (gate.weight, gate.e_score_correction_bias))
    affinity = 1 / (1 + np.exp(-(states @ weight.T)))
    chosen = np.argsort(-(affinity + bias), axis=-1)[..., :CHOSEN]
    gains = np.take_along_axis(affinity, chosen, -1)
    return chosen, SCALING * gains / gains.sum(-1, keepdims=True)


def slow_experts(model: PreTrainedModel, layer: int, states: Array, inputs: Array) -> tuple[Array, Array]:
    """Scores of experts [E] and of their channels [E, F]; `states` go to the router, `inputs` to the experts."""
    module: Any = model.get_submodule(f"model.layers.{layer}.mixer.experts")
    up, down = (tensor.detach().double().numpy() for tensor in (module.up_proj, module.down_proj))
    chosen, gains = slow_routing(model, layer, states)
    scores, channels = np.zeros(EXPERTS), np.zeros((EXPERTS, up.shape[1]))
    for expert in range(EXPERTS):
        outputs = []
        for sample in range(len(states)):
            own = []
            for t in range(states.shape[1]):
                for place in range(CHOSEN):
                    if chosen[sample, t, place] == expert:
                        inside = np.maximum(up[expert] @ inputs[sample, t], 0) ** 2
                        own.append(np.abs(inside))
                        outputs.append(gains[sample, t, place] * np.linalg.norm(down[expert] @ inside))
            if own:
                channels[expert] += np.mean(own, axis=0) ** 2
        scores[expert] = np.mean(outputs) if outputs else 0
    return scores, np.sqrt(channels)


def log_probabilities(model: PreTrainedModel, blocks: NDArray[np.int64]) -> Array:
    with torch.no_grad():
        logits: Array = model(input_ids=torch.from_numpy(blocks), use_cache=False).logits.double().numpy()
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def slow_removal(model: PreTrainedModel, blocks: NDArray[np.int64], rounds: int) -> list[tuple[int, float]]:
    """(layer, KL) in order of removal, the rest sorted by KL behind: whole models with layers taken out."""
    inner: Any = model.base_model
    whole, layers = log_probabilities(model, blocks), list(inner.layers)
    remaining, order = list(range(len(layers))), []
    for _ in range(rounds):
        losses = {}
        for layer in remaining:
            inner.layers = nn.ModuleList([layers[other] for other in remaining if other != layer])
            part = log_probabilities(model, blocks)
            losses[layer] = float((np.exp(whole) * (whole - part)).sum(-1).mean())
        least = min(losses, key=lambda layer: losses[layer])
        remaining.remove(least)
        order.append((least, losses[least]))
    inner.layers = nn.ModuleList(layers)
    return order + sorted(((layer, losses[layer]) for layer in remaining), key=lambda pair: pair[1])
