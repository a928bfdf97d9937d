"""Depth: which layers stay.

Without scores layers go in blocks: a token mixer (attention or Mamba) together with the channel mixer (MLP or experts)
that follows it, so that the two keep taking turns.  The block that frees the most memory under the workload goes first;
of equal ones the furthest from both ends of the stack, where layers matter most, and from what has gone already, so
that no hole is torn.  Attention layers keep a floor.  So 62 -> 56 layers of Nemotron-Nano-12B-v2 leave 27 Mamba, 4
attention and 25 MLP layers, the very counts of the published 9B.

With scores the layers of the least importance go, one by one, above the same floor.

Where a config says by a period which layer is which (Family.together), as many layers in a row go as leave it true.

A person may set how many layers of each kind stay at least and at most, and which kinds may go at all (LayerLimits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.precision import precision_of, tally
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec

if TYPE_CHECKING:
    from minitron.cut.scores import Scores

Kept = tuple[int, ...]
"""Kept layers, ascending."""

# 4 of the 6 attention layers of Nemotron-Nano-12B-v2 stayed: recall over a long context hangs on the few there are.
_ATTENTION_FLOOR: Final = (2, 3)


@dataclass(frozen=True)
class LayerLimits:
    """Which layers may go.  Kinds are named in full (`mamba`) or by their letter (`M`)."""

    may_go: Collection[str] | None = None
    """Kinds of which layers may go; None for all."""

    at_least: Mapping[str, int] = field(default_factory=dict)
    """kind -> the fewest layers of it that stay."""

    at_most: Mapping[str, int] = field(default_factory=dict)
    """kind -> the most layers of it that stay."""

    def bounds(self, spec: ModelSpec) -> dict[str, tuple[int, int]]:
        """kind -> the fewest and the most layers of it that stay; raises MinitronError for what cannot be."""
        may_go = None if self.may_go is None else {_kind(spec, name) for name in self.may_go}
        least = {_kind(spec, name): count for name, count in self.at_least.items()}
        most = {_kind(spec, name): count for name, count in self.at_most.items()}
        found = {}
        for kind, total in Counter(spec.layers).items():
            whole = may_go is not None and kind not in may_go
            low, high = least.get(kind, total if whole else 0), most.get(kind, total)
            if not 0 <= low <= total or high < 0:
                wrong = low if not 0 <= low <= total else high
                raise MinitronError(f"{wrong} {kind} layers cannot be kept; the model has {total} of them.")
            if low > high or (whole and high < total):
                raise MinitronError(
                    f"at most {high} of the model's {total} {kind} layers are to stay, but at least "
                    f"{(total if whole else low)} must; change one of the two limits."
                )
            found[kind] = (total if whole else low, min(high, total))
        return found


def _kind(spec: ModelSpec, name: str) -> str:
    """The kind of layer that a person names."""
    kinds = {letter: kind for letter, kind in spec.family.letters.items() if kind in spec.layers}
    kind = kinds.get(name, name)
    if kind not in kinds.values():
        known = ", ".join(f"{kind} ({letter})" for letter, kind in kinds.items())
        raise MinitronError(f"{name} is not a kind of layer of this model; its kinds are {known}.")
    return kind


def is_attention(spec: ModelSpec, layer: int) -> bool:
    """Whether a layer keeps keys and values."""
    return has_attention(spec, spec.layers[layer])


def has_attention(spec: ModelSpec, kind: str) -> bool:
    """Whether layers of a kind keep keys and values."""
    cache = spec.cache(kind)
    return cache is not None and bool(cache.keys_values)


def attention_floor(spec: ModelSpec, keep_attention: int | None = None) -> int:
    """The fewest attention layers that may stay: `keep_attention`, else two thirds of them (rounded up) in a hybrid
    and one where all layers have attention.  Raises MinitronError for more than there are."""
    total = sum(is_attention(spec, layer) for layer in range(len(spec.layers)))
    if keep_attention is None:
        others = any(spec.cache(kind) is not None for kind in spec.layers) and total < len(spec.layers)
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
    limits: LayerLimits | None = None,
) -> tuple[Kept, ...]:
    """Every depth worth a try, the most layers first and none of fewer than `fewest`: block by block without scores,
    layer by layer with them.  Where limits ask for fewer layers of a kind, the first depth is without those."""
    dropper = _dropper(spec, workload, scores, keep_attention, limits).enforced(fewest)
    found = [dropper.kept]
    while dropper.drop_one(fewest, whole_blocks=True):
        found.append(dropper.kept)
    return tuple(found)


def depth_of(
    spec: ModelSpec,
    workload: Workload,
    layers: int,
    *,
    scores: Scores | None = None,
    keep_attention: int | None = None,
    limits: LayerLimits | None = None,
) -> Kept:
    """Which layers stay when exactly `layers` do.

    Raises MinitronError where the model has fewer, or the attention layers to keep leave no such choice."""
    if not 1 <= layers <= len(spec.layers):
        raise MinitronError(f"{layers} layers cannot be kept of {len(spec.layers)}; choose 1 to {len(spec.layers)}.")
    dropper = _dropper(spec, workload, scores, keep_attention, limits)
    if (left := len(dropper.kept) - dropper.excess(dropper.counts())) < layers:
        raise MinitronError(f"{layers} layers are more than the {left} that the limits allow; keep fewer layers.")
    together = spec.family.together(spec.text)
    if (left - layers) % together:
        raise MinitronError(
            f"{layers} layers cannot be kept: those of this {spec.family.name} model only go {together} at a time; "
            f"keep {layers + (left - layers) % together}."
        )
    while len(dropper.kept) > layers:
        if not dropper.drop_one(layers, whole_blocks=False):
            if any(least for least, _ in dropper.bounds.values()):
                raise MinitronError(f"{layers} layers are fewer than the limits allow; keep fewer layers of some kind.")
            raise MinitronError(
                f"{layers} layers are fewer than the {dropper.floor} attention layers to keep; lower --keep-attention."
            )
    return dropper.kept


def mixes(
    spec: ModelSpec,
    workload: Workload,
    fewest: int,
    *,
    scores: Scores | None = None,
    keep_attention: int | None = None,
    limits: LayerLimits | None = None,
) -> tuple[Kept, ...]:
    """For every number of each kind of layer that the limits allow, which layers stay; none of fewer than `fewest`
    layers, the most first."""
    dropper = _dropper(spec, workload, scores, keep_attention, limits)
    ranges = [range(most, least - 1, -1) for least, most in dropper.bounds.values()]
    attention = [is_attention(spec, spec.layers.index(kind)) for kind in dropper.bounds]
    found = []
    for counts in product(*ranges):
        attends = sum(count for count, one in zip(counts, attention, strict=True) if one)
        if sum(counts) >= max(fewest, 1) and attends >= dropper.floor:
            exact = {kind: (count, count) for kind, count in zip(dropper.bounds, counts, strict=True)}
            one = replace(dropper, bounds=exact)
            try:
                found.append(one.enforced(sum(counts)).kept)
            except MinitronError:
                # Where layers only go together, or some always stay, not every number of them can be left.
                if spec.family.together(spec.text) == 1 and not spec.family.stays(spec.text):
                    raise
    return tuple(sorted(found, key=len, reverse=True))


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
                f"the pattern does not fit the model's {spec.letters}: letter {position}, {letter!r}, "
                "finds no layer; a pattern can only drop letters."
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


def _dropper(
    spec: ModelSpec,
    workload: Workload,
    scores: Scores | None,
    keep_attention: int | None,
    limits: LayerLimits | None,
) -> _Dropper:
    limits = limits or LayerLimits()
    bounds = limits.bounds(spec)
    floor = attention_floor(spec, keep_attention)
    attention = [kind for kind in bounds if is_attention(spec, spec.layers.index(kind))]
    if any(_kind(spec, name) in attention for name in limits.at_least):
        if keep_attention is not None:
            raise MinitronError(
                "the number of attention layers is given twice; drop --keep-attention or the other limit."
            )
        floor = 0
    ceiling = sum(bounds[kind][1] for kind in attention)
    if keep_attention is not None and keep_attention > ceiling:
        raise MinitronError(
            f"at most {ceiling} attention layers are to stay, but at least {keep_attention}; change one of the two."
        )
    worth = layer_scores(spec, scores)
    freed = {kind: freed_bytes(spec, workload, spec.layers.index(kind)) for kind in bounds} if worth is None else {}
    return _Dropper(spec, bounds, min(floor, ceiling), worth, freed, tuple(range(len(spec.layers))))


@dataclass
class _Dropper:
    """Drops block after block, or layer after layer where scores are given."""

    spec: ModelSpec

    bounds: Mapping[str, tuple[int, int]]
    """kind -> the fewest and the most layers of it that stay."""

    floor: int
    """The fewest attention layers that stay."""

    worth: NDArray[np.float64] | None
    """[layers] by the scores."""

    freed: Mapping[str, int]
    """kind -> bytes that a layer of it frees; empty where scores decide."""

    kept: Kept

    def counts(self) -> Counter[str]:
        """kind -> layers of it that are kept."""
        return Counter(self.spec.layers[layer] for layer in self.kept)

    def excess(self, counts: Mapping[str, int]) -> int:
        """How many of so many layers of each kind must go because of the bounds."""
        return sum(max(count - self.bounds[kind][1], 0) for kind, count in counts.items())

    def enforced(self, fewest: int) -> _Dropper:
        """Itself, after dropping what is above the bounds; no more than that where `fewest` layers would not stay."""
        while excess := self.excess(counts := self.counts()):
            above = [kind for kind, count in counts.items() if count > self.bounds[kind][1]]
            if not self.drop_one(min(fewest, len(self.kept) - excess), whole_blocks=False, among=above):
                raise MinitronError("the limits leave no layer at all; allow layers of some kind to stay.")
        return self

    def drop_one(self, fewest: int, *, whole_blocks: bool, among: Collection[str] = ()) -> bool:
        """Drop the next block that has one of the kinds `among` and after which `fewest` layers can still stay; False
        where none may go.

        Unless `whole_blocks` is asked for, a single layer of a block goes where no block is small enough."""
        together = self.spec.family.together(self.spec.text)
        singles: list[Kept] = [self.kept[at : at + together] for at in range(len(self.kept) - together + 1)]
        tries: list[list[Kept]] = [self._blocks(), singles] if self.worth is None and together == 1 else [singles]
        counts = self.counts()
        holes = [-1, len(self.spec.layers), *(set(range(len(self.spec.layers))) - set(self.kept))]
        for blocks in tries[:1] if whole_blocks else tries:
            fitting = [block for block in blocks if self._may_go(block, counts, fewest, among)]
            if fitting:
                gone = min(fitting, key=lambda block: self._rank(block, holes))
                self.kept = tuple(layer for layer in self.kept if layer not in gone)
                return True
        return False

    def _may_go(self, block: Kept, counts: Counter[str], fewest: int, among: Collection[str]) -> bool:
        gone = Counter(self.spec.layers[layer] for layer in block)
        if not self.spec.family.stays(self.spec.text).isdisjoint(block):
            return False
        if len(block) == len(self.kept) or (among and not any(kind in among for kind in gone)):
            return False
        left = counts - gone
        if left.total() - self.excess(left) < fewest:
            return False
        attention = [kind for kind in counts if has_attention(self.spec, kind)]
        if any(kind in gone for kind in attention) and sum(left[kind] for kind in attention) < self.floor:
            return False
        return all(left[kind] >= self.bounds[kind][0] for kind in gone)

    def _rank(self, block: Kept, holes: Collection[int]) -> tuple[float, float, int]:
        """Smaller goes sooner."""
        if self.worth is not None:
            return float(sum(self.worth[layer] for layer in block)), 0.0, -block[0]
        freed = sum(self.freed[self.spec.layers[layer]] for layer in block)
        room = min(min(abs(layer - hole) for hole in holes) for layer in block)
        return -float(freed), -float(room), -block[0]

    def _blocks(self) -> list[Kept]:
        """The kept layers as blocks: a token mixer with the channel mixer next after it."""
        found: list[Kept] = []
        for layer in self.kept:
            mixes_tokens = self.spec.cache(self.spec.layers[layer]) is not None
            follows = (
                bool(found) and len(found[-1]) == 1 and self.spec.cache(self.spec.layers[found[-1][0]]) is not None
            )
            if follows and not mixes_tokens:
                found[-1] = (*found[-1], layer)
            else:
                found.append((layer,))
        return found
