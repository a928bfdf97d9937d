"""Iterative layer removal: in each round the layer whose removal changes the logits least goes, by KL divergence.

Shape letters: B sequences, T tokens, N tokens of a chunk, H hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.totals import Array
from minitron.errors import NotFinite
from minitron.model.backbone import backbone
from minitron.model.layer_by_layer import Passed
from minitron.model.layerwise import final_norm_module, layers_module
from minitron.model.output_layer import OutputLayer, output_layer
from minitron.model.spec import ModelSpec
from minitron.progress import Advance, Progress, silent

CHUNK_LOGITS: Final = 2**22
"""Logits of a chunk: [N, V] with N = CHUNK_LOGITS / V, 16 MiB in fp32."""


@dataclass(frozen=True)
class Decoder:
    """The parts of a model that a walk through its layers needs."""

    layers: Sequence[nn.Module]
    norm: nn.Module
    """Between the last layer and the output layer."""

    head: OutputLayer
    """The output layer."""


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch on its way: what enters the first layer and what the whole model made of it."""

    entry: Tensor
    """[B, T, H] embeddings."""

    passed: Sequence[Passed]
    """What the model passes to each layer beside the states: positions, masks."""

    reference: Tensor
    """[B, T, H]: what the output layer of the whole model reads."""


@torch.inference_mode()
def removal_scores(
    model: PreTrainedModel,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    *,
    batch_size: int = 1,
    max_dropped: int | None = None,
    progress: Progress = silent,
) -> tuple[Array, int]:
    """[layers]: how much the logits on the sequences `blocks` [S, T] miss each layer; and how many were dropped.

    Repeats { for every remaining layer, the mean over all tokens of KL(whole model || model without the layers dropped
    so far and without this one), in nats; drop the layer of the least } until `max_dropped` layers (half of them unless
    given, at most all but one) are dropped.  The score of a dropped layer is the KL of the model at the moment it is
    dropped, that is without it and all before it.  The score of a layer that is never dropped is its KL in the last
    round: what removing it instead of the last dropped one would do.  Sorted by score, layers stand in the order of
    their removal, those that stayed behind them by their last KL: where a KL does not exceed the score before it in
    that order (a removal may even help a little), the score is the one before plus a millionth of it or 1e-9, whichever
    is larger.  So removing the n layers of the lowest scores is what n rounds remove.

    Cost: a round with n layers left runs n(n + 1) / 2 layers per token, for what stands before the left-out layer is
    computed once; the embeddings and last states of `blocks` stay in memory, 2 [S, T, H].  Raises MinitronError where
    a logit is not finite."""
    decoder = _decoder(model, spec)
    batches = [_prepare(model, decoder, torch.from_numpy(part)) for part in parts_of(blocks, batch_size)]
    rounds = number_of_rounds(spec, max_dropped)
    evaluations = sum(len(spec.layers) - dropped for dropped in range(rounds))
    with progress("Scoring layers", float(evaluations * blocks.size), "tokens") as advance:
        found = remove_one_by_one(spec, rounds, lambda left: _without_each(decoder, batches, left, advance), advance)
    return found, rounds


def number_of_rounds(spec: ModelSpec, max_dropped: int | None) -> int:
    """How many layers are dropped: half of them unless given, at most all but one."""
    limit = len(spec.layers) // 2 if max_dropped is None else max_dropped
    return max(1, min(limit, len(spec.layers) - 1))


def remove_one_by_one(
    spec: ModelSpec, rounds: int, losses_without: Callable[[Sequence[int]], dict[int, float]], advance: Advance
) -> Array:
    """[layers]: the scores of `removal_scores`; `losses_without(remaining)` gives layer -> KL without it."""
    remaining = list(range(len(spec.layers)))
    order: list[tuple[int, float]] = []
    for _ in range(rounds):
        losses = losses_without(remaining)
        if not np.isfinite(list(losses.values())).all():
            raise NotFinite(
                "the logits on the calibration text are not finite; check the model's weights, or try --dtype fp32."
            )
        least = min(remaining, key=lambda layer: losses[layer])
        remaining.remove(least)
        order.append((least, losses[least]))
        advance(0, f"{len(order)} of {rounds} dropped, KL {losses[least]:.4g}")
    order += sorted(((layer, losses[layer]) for layer in remaining), key=lambda pair: pair[1])
    return _increasing(order)


def _increasing(order: Sequence[tuple[int, float]]) -> Array:
    """(layer, KL) in order of removal -> [layers]: the KLs, raised where they must be for scores to keep the order."""
    scores = np.zeros(len(order))
    previous = 0.0
    for place, (layer, divergence) in enumerate(order):
        floor = previous + max(1e-6 * previous, 1e-9) if place else 0.0
        previous = max(divergence, floor)
        scores[layer] = previous
    return scores


def _decoder(model: PreTrainedModel, spec: ModelSpec) -> Decoder:
    layers = model.get_submodule(layers_module(spec))
    assert isinstance(layers, nn.ModuleList)
    return Decoder(list(layers), model.get_submodule(final_norm_module(spec)), output_layer(model))


def parts_of(blocks: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Batches of `size` sequences, the last one of what is left."""
    return (blocks[start : start + size] for start in range(0, len(blocks), size))


def _prepare(model: PreTrainedModel, decoder: Decoder, ids: Tensor) -> CalibrationBatch:
    """Run the whole model once, noting what it passes to its layers."""
    entries: list[Tensor] = []
    passed: list[Passed] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not entries:
            entries.append(args[0])
        passed.append(Passed(args[1:], kwargs))

    with ExitStack() as undo:
        for layer in decoder.layers:
            undo.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        reference = backbone(model)(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return CalibrationBatch(entries[0], passed, reference)


def _without_each(
    decoder: Decoder, batches: Sequence[CalibrationBatch], remaining: Sequence[int], advance: Advance
) -> dict[int, float]:
    """layer -> mean over tokens of KL(whole model || model of the remaining layers but that one)."""
    sums = dict.fromkeys(remaining, 0.0)
    for batch in batches:
        states = batch.entry
        for place, layer in enumerate(remaining):
            without = states
            for later in remaining[place + 1 :]:
                without = batch.passed[later].run(decoder.layers[later], without)
            sums[layer] += divergence(decoder.head, batch.reference, decoder.norm(without))
            states = batch.passed[layer].run(decoder.layers[layer], states)
            advance(states.shape[0] * states.shape[1])
    tokens = sum(batch.entry.shape[0] * batch.entry.shape[1] for batch in batches)
    # Rounding can leave a sum of nearly equal logarithms a hair below zero.
    return {layer: max(total / tokens, 0.0) for layer, total in sums.items()}


def divergence(head: OutputLayer, reference: Tensor, states: Tensor) -> float:
    """Sum over tokens of KL(softmax(head(reference)) || softmax(head(states))) in nats; both [B, T, H].

    Softmax in fp32, a chunk of tokens at a time: the logits [tokens, V] never exist as a whole."""
    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    chunks = (torch.split(tensor.flatten(0, 1), size) for tensor in (reference, states))
    for one, other in zip(*chunks, strict=True):
        log_p = head(one).log_softmax(-1)
        log_q = head(other).log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()
    return float(total)
