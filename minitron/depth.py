"""Depth: which layers stay.

Without scores layers go in blocks: a token mixer (attention or Mamba) together with the channel mixer (MLP or experts)
that follows it, so that the two keep taking turns.  The block that frees the most memory under the workload goes first;
of equal ones the furthest from both ends of the stack, where layers matter most, and from what has gone already, so
that no hole is torn.  Attention layers keep a floor.  So 62 -> 56 layers of Nemotron-Nano-12B-v2 leave 27 Mamba, 4
attention and 25 MLP layers, the very counts of the published 9B.

With scores the layers of the least importance go, one by one, above the same floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.memory import Workload, footprint
from minitron.precision import precision_of, tally
from minitron.spec import ModelSpec

if TYPE_CHECKING:
    from minitron.scores import Scores

Kept = tuple[int, ...]
"""Kept layers, ascending."""

# 4 of the 6 attention layers of Nemotron-Nano-12B-v2 stayed: recall over a long context hangs on the few there are.
_ATTENTION_FLOOR: Final = (2, 3)


def is_attention(spec: ModelSpec, layer: int) -> bool:
    """Whether a layer keeps keys and values."""
    cache = spec.family.cache.get(spec.layers[layer])
    return cache is not None and bool(cache.kv_per_token)


def attention_floor(spec: ModelSpec, keep_attention: int | None = None) -> int:
    """The fewest attention layers that may stay: `keep_attention`, else two thirds of them (rounded up) in a hybrid
    and one where all layers have attention.  Raises MinitronError for more than there are."""
    total = sum(is_attention(spec, layer) for layer in range(len(spec.layers)))
    if keep_attention is None:
        others = any(kind in spec.family.cache for kind in spec.layers) and total < len(spec.layers)
        part, whole = _ATTENTION_FLOOR
        return -(-total * part // whole) if others else min(total, 1)
    if not 0 <= keep_attention <= total:
        raise MinitronError(f"{keep_attention} attention layers cannot be kept; the model has {total} of them.")
    return keep_attention


def depths(
    spec: ModelSpec,
    workload: Workload,
    fewest: int,
    *,
    scores: Scores | None = None,
    keep_attention: int | None = None,
) -> tuple[Kept, ...]:
    """Every depth worth a try, all layers first and none of fewer than `fewest`: block by block without scores, layer
    by layer with them."""
    dropper = _Dropper(spec, workload, layer_scores(spec, scores), attention_floor(spec, keep_attention))
    found = [dropper.kept]
    while dropper.drop_one(len(dropper.kept) - fewest, whole_blocks=True):
        found.append(dropper.kept)
    return tuple(found)


def depth_of(
    spec: ModelSpec,
    workload: Workload,
    layers: int,
    *,
    scores: Scores | None = None,
    keep_attention: int | None = None,
) -> Kept:
    """Which layers stay when exactly `layers` do.

    Raises MinitronError where the model has fewer, or the attention layers to keep leave no such choice."""
    if not 1 <= layers <= len(spec.layers):
        raise MinitronError(f"{layers} layers cannot be kept of {len(spec.layers)}; choose 1 to {len(spec.layers)}.")
    floor = attention_floor(spec, keep_attention)
    dropper = _Dropper(spec, workload, layer_scores(spec, scores), floor)
    while len(dropper.kept) > layers:
        if not dropper.drop_one(len(dropper.kept) - layers, whole_blocks=False):
            raise MinitronError(
                f"{layers} layers are fewer than the {floor} attention layers to keep; lower --keep-attention."
            )
    return dropper.kept


def match_pattern(spec: ModelSpec, pattern: str, scores: Scores | None = None) -> Kept:
    """Which layers stay to leave `pattern`, one letter a layer.

    Of all choices the one that keeps the most importance: by the scores, and without them by the distance from the
    middle of the stack.  Raises MinitronError where leaving layers out cannot lead to the pattern."""
    _require_reachable(spec, pattern)
    worth = layer_scores(spec, scores)
    if worth is None:
        worth = np.abs(np.arange(len(spec.letters)) - (len(spec.letters) - 1) / 2)
    # best[j, i]: the most that the first j letters of the pattern can keep among the first i layers.
    best = np.full((len(pattern) + 1, len(spec.letters) + 1), -np.inf)
    best[0] = 0
    for j, letter in enumerate(pattern, 1):
        for i, own in enumerate(spec.letters, 1):
            taken = best[j - 1, i - 1] + worth[i - 1] if own == letter else -np.inf
            best[j, i] = max(best[j, i - 1], taken)
    kept: list[int] = []
    i = len(spec.letters)
    for j in range(len(pattern), 0, -1):
        while best[j, i - 1] == best[j, i]:
            i -= 1
        i -= 1
        kept.append(i)
    return tuple(reversed(kept))


def _require_reachable(spec: ModelSpec, pattern: str) -> None:
    place = 0
    if not pattern:
        raise MinitronError("the pattern is empty; a model needs at least one layer.")
    for position, letter in enumerate(pattern, 1):
        place = spec.letters.find(letter, place) + 1
        if place == 0:
            raise MinitronError(
                f"the pattern cannot be left of the model's {spec.letters}: letter {position} of it, {letter!r}, finds "
                "no layer; a pattern may only leave letters out."
            )


def layer_scores(spec: ModelSpec, scores: Scores | None) -> NDArray[np.float64] | None:
    """[layers] what each layer is worth, None where no scores say; raises MinitronError for another model's scores."""
    if scores is None:
        return None
    scores.require(spec)
    return scores.importance.get(("layer", None))


def freed_bytes(spec: ModelSpec, workload: Workload, layer: int) -> int:
    """What a model takes less without one of its layers."""
    precision = precision_of(spec, workload.weights, workload.keep)
    rest = [other for other in range(len(spec.layers)) if other != layer]
    with_it, without = (tally(spec, precision, [kept]).first for kept in (range(len(spec.layers)), rest))
    return int(footprint(spec, workload, tally=with_it).total - footprint(spec, workload, tally=without).total)


class _Dropper:
    """Drops block after block, or layer after layer where scores are given."""

    def __init__(
        self, spec: ModelSpec, workload: Workload, worth: NDArray[np.float64] | None, attention_floor: int
    ) -> None:
        self.spec, self.floor = spec, attention_floor
        self.kept: Kept = tuple(range(len(spec.layers)))
        self.worth = worth
        self.freed = {kind: freed_bytes(spec, workload, spec.layers.index(kind)) for kind in set(spec.layers)}

    def drop_one(self, most: int, *, whole_blocks: bool) -> bool:
        """Drop the next block, of at most `most` layers; False where none may go.

        Unless `whole_blocks` is asked for, a single layer of a block goes where no block is small enough."""
        singles: list[Kept] = [(layer,) for layer in self.kept]
        tries: list[list[Kept]] = [self._blocks(), singles] if self.worth is None else [singles]
        for blocks in tries[:1] if whole_blocks else tries:
            fitting: list[Kept] = [block for block in blocks if self._may_go(block, most)]
            if fitting:
                gone = min(fitting, key=self._rank)
                self.kept = tuple(layer for layer in self.kept if layer not in gone)
                return True
        return False

    def _may_go(self, block: Kept, most: int) -> bool:
        left = set(self.kept) - set(block)
        attention = sum(is_attention(self.spec, layer) for layer in left)
        touched = any(is_attention(self.spec, layer) for layer in block)
        return len(block) <= most and bool(left) and (not touched or attention >= self.floor)

    def _rank(self, block: Kept) -> tuple[float, float, int]:
        """Smaller goes sooner."""
        if self.worth is not None:
            return float(self.worth[block[0]]), 0.0, -block[0]
        freed = sum(self.freed[self.spec.layers[layer]] for layer in block)
        holes = [-1, len(self.spec.layers), *(set(range(len(self.spec.layers))) - set(self.kept))]
        room = min(min(abs(layer - hole) for hole in holes) for layer in block)
        return -float(freed), -float(room), -block[0]

    def _blocks(self) -> list[Kept]:
        """The kept layers as blocks: a token mixer with the channel mixer next after it."""
        found: list[Kept] = []
        for layer in self.kept:
            mixes_tokens = self.spec.layers[layer] in self.spec.family.cache
            follows = bool(found) and len(found[-1]) == 1 and self.spec.layers[found[-1][0]] in self.spec.family.cache
            if follows and not mixes_tokens:
                found[-1] = (*found[-1], layer)
            else:
                found.append((layer,))
        return found
