"""Iterative layer removal with one layer's weights in memory at a time.

A round reads every layer once.  Beside the sequences on their way through all remaining layers go those of every
candidate, which skip one layer each: at the end of the round there is one stream for every layer that could go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from importance.score.depth import divergences, number_of_rounds, remove_one_by_one
from importance.score.totals import Array
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.output_layer import output_layer
from minitron.progress import Advance, Progress, silent


@torch.inference_mode()
def layerwise_removal_scores(
    source: LayerwiseModel,
    blocks: NDArray[np.int64],
    states: States,
    *,
    batch_size: int = 1,
    max_dropped: int | None = None,
    progress: Progress = silent,
) -> tuple[Array, int]:
    """As importance.score.depth.removal_scores, the same numbers and layer passes: [layers], and how many were dropped.

    `states` holds a stream of [S, T, H] for each layer."""
    count, rounds = len(source.spec.layers), number_of_rounds(source.spec, max_dropped)
    walk = LayerByLayer(source, blocks, batch_size, states)
    for batch in walk.batches:
        states.put(("entry", batch), walk.state(batch))
    passes = sum((count - dropped) * (count - dropped + 1) // 2 for dropped in range(rounds))
    with progress("Scoring layers", float(passes * blocks.size), "tokens") as advance:
        streams = _Streams(walk, states, advance)
        return remove_one_by_one(source.spec, rounds, streams.losses_without, advance), rounds


class _Streams:
    """The streams of one round after the other."""

    def __init__(self, walk: LayerByLayer, states: States, advance: Advance) -> None:
        self.walk, self.states, self.advance = walk, states, advance
        self.has_reference = False

    def losses_without(self, remaining: Sequence[int], last: bool) -> dict[int, float]:
        """layer -> mean over tokens of KL(whole model || model of the remaining layers but that one), in every round of
        all of them: all batches are through a layer before the next one is in memory."""
        walk, states = self.walk, self.states
        for batch in walk.batches:
            states.put(("whole", batch), states.get(("entry", batch)))
        for place, layer in enumerate(remaining):
            with walk.source.resident(layer):
                for batch in walk.batches:
                    self._pass(layer, remaining[:place], batch)
                    tokens = walk.shapes[batch][0] * walk.shapes[batch][1]
                    self.advance(tokens * (place + 1), f"layer {place + 1} of {len(remaining)}")
        return self._losses(remaining)

    def _pass(self, layer: int, before: Sequence[int], batch: int) -> None:
        """One batch of every stream through a layer; the stream that skips it begins here."""
        whole = self.states.get(("whole", batch))
        self.states.put(("without", layer, batch), whole)
        for name in [*(("without", skipped, batch) for skipped in before), ("whole", batch)]:
            self.states.put(name, self.walk.step(layer, batch, self.states.get(name)))

    def _losses(self, remaining: Sequence[int]) -> dict[int, float]:
        walk, sums = self.walk, dict.fromkeys(remaining, 0.0)
        device, head = walk.source.device, output_layer(walk.model)
        with walk.source.resident(OUTPUT):
            for batch in walk.batches:
                if not self.has_reference:
                    self.states.put(("reference", batch), walk.norm(self.states.get(("whole", batch)).to(device)))
                reference = self.states.get(("reference", batch)).to(device)
                for layer in remaining:
                    states = self.states.get(("without", layer, batch)).to(device)
                    (missed,) = divergences(head, reference, [walk.norm(states)])
                    sums[layer] += missed
        self.has_reference = True
        tokens = sum(sequences * length for sequences, length in walk.shapes)
        return {layer: max(total / tokens, 0.0) for layer, total in sums.items()}
