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

ROUNDING: Final = 1e-5
"""By so much, in nats, rounding can make the KL of a token in fp32 too small."""

KEPT: Final = 2**28
"""Bytes of hidden states between layers that are kept from one candidate, and one round, to the next."""


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

    Cost: a round with n layers left runs at most n(n + 1) / 2 layers per token, for what stands before the left-out
    layer is computed once, and not again in the next round (`_Path`); all rounds but the last give a candidate up at
    the batch where it is past the best one (`_Rounds`).  The embeddings and last states of `blocks` stay in memory,
    2 [S, T, H], and at most KEPT bytes of paths.  Raises MinitronError where a logit is not finite."""
    decoder = _decoder(model, spec)
    batches = [_prepare(model, decoder, torch.from_numpy(part)) for part in parts_of(blocks, batch_size)]
    rounds = number_of_rounds(spec, max_dropped)
    evaluations = sum(len(spec.layers) - dropped for dropped in range(rounds))
    with progress("Scoring layers", float(evaluations * blocks.size), "tokens") as advance:
        return remove_one_by_one(spec, rounds, _Rounds(decoder, batches, advance).losses_without, advance), rounds


def number_of_rounds(spec: ModelSpec, max_dropped: int | None) -> int:
    """How many layers are dropped: half of them unless given, at most all but one."""
    limit = len(spec.layers) // 2 if max_dropped is None else max_dropped
    return max(1, min(limit, len(spec.layers) - 1))


def remove_one_by_one(
    spec: ModelSpec, rounds: int, losses_without: Callable[[Sequence[int], bool], dict[int, float]], advance: Advance
) -> Array:
    """[layers]: the scores of `removal_scores`; `losses_without(remaining, last)` gives layer -> KL without it, of all
    of them in the last round and before it at least of the layer of the least."""
    remaining = list(range(len(spec.layers)))
    order: list[tuple[int, float]] = []
    for number in range(rounds):
        losses = losses_without(remaining, number == rounds - 1)
        if not np.isfinite(list(losses.values())).all():
            raise NotFinite(
                "the logits on the calibration text are not finite; check the model's weights, or try --dtype fp32."
            )
        least = min(sorted(losses), key=lambda layer: losses[layer])
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


class _Path:
    """The way of one batch through the remaining layers: the states [B, T, H] before each of them."""

    def __init__(self, decoder: Decoder, batch: CalibrationBatch, *, kept: bool) -> None:
        """`kept` tells whether states stay in memory once they are made."""
        self.decoder, self.batch, self.kept = decoder, batch, kept
        self.states = [batch.entry]
        self.without: tuple[int, list[Tensor]] | None = None

    @property
    def tokens(self) -> int:
        """B * T."""
        return self.batch.entry.shape[0] * self.batch.entry.shape[1]

    def walk(self, remaining: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """(layer, what enters it), each made when it is asked for."""
        states = self.batch.entry
        for place, layer in enumerate(remaining):
            if place < len(self.states):
                states = self.states[place]
            else:
                states = self._run(remaining[place - 1], states)
                if self.kept:
                    self.states.append(states)
            yield layer, states

    def detour(self, left_out: int, later: Sequence[int], states: Tensor, *, likely: bool) -> Tensor:
        """What the final norm makes of the `states` before a layer that is left out, by way of the `later` ones.

        What is `likely` to be dropped is the next round's way."""
        passed = []
        for layer in later:
            passed.append(states)
            states = self._run(layer, states)
        if likely and self.kept:
            self.without = left_out, passed
        made: Tensor = self.decoder.norm(states)
        return made

    def drop(self, layer: int, place: int) -> None:
        """The layer at a place is not among the remaining ones any longer."""
        del self.states[place + 1 :]
        if self.without is not None and self.without[0] == layer:
            self.states[place:] = self.without[1]
        self.without = None

    def _run(self, layer: int, states: Tensor) -> Tensor:
        return self.batch.passed[layer].run(self.decoder.layers[layer], states)


class _Rounds:
    """The candidates of one round after the other, each the remaining layers without one of them."""

    def __init__(self, decoder: Decoder, batches: Sequence[CalibrationBatch], advance: Advance) -> None:
        self.decoder, self.advance = decoder, advance
        self.remaining: Sequence[int] = range(len(decoder.layers))
        self.paths, bytes_kept = [], 0
        for batch in batches:
            # Those before the remaining layers, and those of the candidate that is likely to be dropped.
            bytes_kept += 2 * len(decoder.layers) * batch.entry.nbytes
            self.paths.append(_Path(decoder, batch, kept=bytes_kept <= KEPT))
        self.tokens = sum(path.tokens for path in self.paths)

    def losses_without(self, remaining: Sequence[int], last: bool) -> dict[int, float]:
        """layer -> mean over tokens of KL(whole model || model of the remaining layers but that one): of all layers in
        the `last` round, else of those that may have the least.

        The KL of a batch is not negative, so that a candidate whose sum so far is above the sum of another over all
        batches cannot have the least.  Which one is likely to have it the first batch tells: that one is read to the
        end, and every other as far as it is below."""
        self._begin(remaining)
        sums = dict.fromkeys(remaining, 0.0)
        first, *others = self.paths
        self._add(sums, first, remaining)
        bound, likely = float("inf"), None
        if not last:
            likely = min(remaining, key=lambda layer: sums[layer])
            for path in others:
                self._add(sums, path, [likely], likely=True)
            bound = sums[likely]
        read, left = first.tokens, [layer for layer in remaining if layer != likely]
        for path in others:
            limit = bound + ROUNDING * (self.tokens - read)
            # A sum that is not finite stays, so that the failure is told.
            for layer in [layer for layer in left if limit < sums[layer] < float("inf")]:
                left.remove(layer)
                del sums[layer]
                self.advance(self.tokens - read)
            self._add(sums, path, left)
            read += path.tokens
        # Rounding can leave a sum of nearly equal logarithms a hair below zero.
        return {layer: max(total / self.tokens, 0.0) for layer, total in sums.items()}

    def _begin(self, remaining: Sequence[int]) -> None:
        """Let the paths know what was dropped since the last round."""
        for place, layer in enumerate(self.remaining):
            if layer not in remaining:
                for path in self.paths:
                    path.drop(layer, place)
        self.remaining = tuple(remaining)

    def _add(self, sums: dict[int, float], path: _Path, candidates: Sequence[int], *, likely: bool = False) -> None:
        """Add to the sums of some candidates what they miss on a batch."""
        found: dict[int, Tensor] = {}
        if not candidates:
            return
        for place, (layer, states) in enumerate(path.walk(self.remaining)):
            if layer in candidates:
                found[layer] = path.detour(layer, self.remaining[place + 1 :], states, likely=likely)
                self.advance(path.tokens)
                if len(found) == len(candidates):
                    break
        missed = divergences(self.decoder.head, path.batch.reference, list(found.values()))
        for layer, amount in zip(found, missed, strict=True):
            sums[layer] += amount


def divergences(head: OutputLayer, reference: Tensor, candidates: Sequence[Tensor]) -> list[float]:
    """Sum over tokens of KL(softmax(head(reference)) || softmax(head(states))) in nats for the states of every
    candidate; all [B, T, H].

    Softmax in fp32, a chunk of tokens at a time: the logits [tokens, V] never exist as a whole, and those of the
    reference are made once."""
    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    totals = torch.zeros(len(candidates), dtype=torch.float64, device=reference.device)
    chunks = (torch.split(tensor.flatten(0, 1), size) for tensor in (reference, *candidates))
    for one, *others in zip(*chunks, strict=True):
        log_p = head(one).log_softmax(-1)
        p = log_p.exp()
        for place, other in enumerate(others):
            difference = log_p - head(other).log_softmax(-1)
            totals[place] += difference.mul_(p).sum(-1).double().sum()
    return [float(total) for total in totals]
