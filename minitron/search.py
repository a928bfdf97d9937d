"""The search: every point of a lattice is counted in closed form, what fits the budget is ranked, the best come back.

Nothing is loaded and nothing is guessed: a candidate's bytes follow from its sizes alone (minitron.memory).  Points are
counted in chunks, so that memory stays bounded however large the lattice is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.depth import Kept, depth_of, depths, match_pattern
from minitron.errors import MinitronError, NothingFits
from minitron.lattice import Lattice, Points, default_widths, fewest_layers, joined, parse_widths
from minitron.memory import Budget, Footprint, Workload, footprint
from minitron.parallel import splits
from minitron.precision import Tally, precision_of, tally
from minitron.shares import Shares
from minitron.spec import ModelSpec
from minitron.units import format_bytes

if TYPE_CHECKING:
    from minitron.scores import Scores

SORTS: Final = {
    "score": "ranked by {score}",
    "memory": "ranked by memory, the largest that fits first",
}
"""How candidates can be ordered -> how the order is told."""


@dataclass(frozen=True)
class Candidate:
    """One architecture and what it costs."""

    sizes: Mapping[str, int]
    """config key -> size, num_hidden_layers among them; also those that stay, but none that no layer has any more."""

    kept: Kept
    """Kept layers of the parent."""

    letters: str
    """One letter a kept layer."""

    parameters: int
    """Without the multi-token-prediction block."""

    footprint: Footprint
    fits: bool

    score: float
    """Effective parameters where scores were given, else parameters."""

    def to_json(self) -> dict[str, Any]:
        """The candidate as a JSON object, bytes as whole numbers."""
        return {
            "sizes": dict(self.sizes),
            "layers": self.letters,
            "kept_layers": list(self.kept),
            "parameters": self.parameters,
            "footprint": self.footprint.to_json(),
            "fits": self.fits,
            "score": self.score,
        }


@dataclass(frozen=True)
class SearchResult:
    """What fits."""

    budget: Budget
    workload: Workload

    parent: Candidate
    """The model as it is."""

    candidates: tuple[Candidate, ...]
    """The best that fit, best first; no two are equal."""

    searched: int
    """Architectures counted."""

    feasible: int
    """Those of them that fit."""

    ranking: str
    """By what the candidates are ordered, in words."""

    chosen: int = 0
    """Index of the candidate to build."""

    @property
    def best(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    def to_json(self) -> dict[str, Any]:
        """The document of `minitron plan`; sizes in bytes."""
        gpu = self.budget.gpu
        return {
            "gpu": None if gpu is None else gpu.name,
            "workload": self.workload.to_json(),
            "budget": self.budget.to_json(),
            "parent": self.parent.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "chosen": self.chosen,
            "searched": self.searched,
            "feasible": self.feasible,
            "ranking": self.ranking,
        }


def build_lattice(
    spec: ModelSpec,
    workload: Workload,
    *,
    lattice: Mapping[str, str] | None = None,
    layers: int | None = None,
    pattern: str | None = None,
    keep_attention: int | None = None,
    scores: Scores | None = None,
) -> Lattice:
    """The lattice that a person asks for.

    `lattice` is config key -> sizes as typed (`4480,4800` or `3x,3.5x`); once it names one key, what it does not name
    stays at the model's size.  `layers` or `pattern` set the depth.  What none of them says follows from the table
    minitron.lattice.STEPS.  Raises MinitronError for what contradicts itself or cannot be reached."""
    by_hand = dict(lattice or {})
    counts = by_hand.pop("num_hidden_layers", None)
    if sum(given is not None for given in (layers, pattern, counts)) > 1:
        raise MinitronError("the depth is given twice; choose one of --layers, --pattern and num_hidden_layers.")
    if pattern is not None and keep_attention is not None:
        raise MinitronError("--pattern says which attention layers stay, so --keep-attention has no say; give one.")
    widths = parse_widths(spec, by_hand) if lattice else default_widths(spec)
    wanted = [layers] if layers is not None else _layer_counts(counts) if counts else []
    if pattern is not None:
        kept: tuple[Kept, ...] = (match_pattern(spec, pattern, scores),)
    elif wanted:
        kept = tuple(depth_of(spec, workload, count, scores=scores, keep_attention=keep_attention) for count in wanted)
    else:
        fewest = len(spec.layers) if lattice else fewest_layers(spec)
        kept = depths(spec, workload, fewest, scores=scores, keep_attention=keep_attention)
    return Lattice(spec, kept, widths)


def _layer_counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise MinitronError(f"num_hidden_layers: {text!r} is no list of numbers; write it like 54,56.")
    return sorted({int(word) for word in words}, reverse=True)


def search(
    lattice: Lattice,
    workload: Workload,
    budget: Budget,
    *,
    scores: Scores | None = None,
    sort: str = "score",
    top: int = 10,
) -> SearchResult:
    """The `top` best architectures of the lattice that fit the budget.

    `sort` is a name in SORTS: `score` ranks by effective parameters (minitron.shares) where scores are given and by
    kept parameters where not, `memory` by the footprint; of equal ones the first of the lattice comes first.
    Raises MinitronError where nothing fits, with what the smallest lacks."""
    if sort not in SORTS:
        raise MinitronError(f"candidates cannot be sorted by {sort!r}; choose {' or '.join(SORTS)}.")
    if top < 1:
        raise MinitronError(f"a list of the best {top} is empty; ask for at least 1.")
    spec = lattice.spec
    shares = None if scores is None else Shares(lattice, scores)
    kept = tally(spec, precision_of(spec, workload.weights, workload.keep), lattice.depths)
    best = _Best(top)
    smallest: tuple[int, Points] | None = None
    searched = feasible = 0
    for points, allowed in lattice.chunks():
        allowed = allowed & splits({**spec.sizes, **points.sizes}, workload.tensor_parallel)
        totals = points.spread(_totals(lattice, workload, budget, points, kept))
        fits = allowed & (totals <= budget.available)
        searched += int(np.count_nonzero(allowed))
        feasible += int(np.count_nonzero(fits))
        if not feasible and allowed.any():
            least = np.where(allowed, totals, np.iinfo(np.int64).max).argmin()
            if smallest is None or totals.flat[least] < smallest[0]:
                smallest = int(totals.flat[least]), points.select(np.array([least]))
        if fits.any():
            best.add(points, fits, totals if sort == "memory" else points.spread(_worth(lattice, shares, points)))
    if not searched:
        raise MinitronError("no point of the lattice keeps its groups whole and sizes within the model's; widen it.")
    if smallest is not None and not feasible:
        raise NothingFits(_miss(_candidates(lattice, workload, budget, None, smallest[1])[0], budget, searched))
    score = "kept parameters (no scores given)" if scores is None else "effective parameters (by the scores given)"
    parent = Lattice(spec, (tuple(range(len(spec.layers))),), {})
    return SearchResult(
        budget=budget,
        workload=workload,
        parent=_candidates(parent, workload, budget, None, Points(np.zeros(1, dtype=np.int64), {}, (1,)))[0],
        candidates=_candidates(lattice, workload, budget, shares, best.points),
        searched=searched,
        feasible=feasible,
        ranking=SORTS[sort].format(score=score),
    )


class _Best:
    """The best points seen so far, best first; of equal ones the first seen."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.worth = np.zeros(0)
        self.parts: list[Points] = []

    @property
    def points(self) -> Points:
        """What has been kept."""
        return self.parts[0]

    def add(self, points: Points, fits: NDArray[np.bool_], worth: NDArray[Any]) -> None:
        """Let the better ones among the points that fit in."""
        if len(self.worth) == self.top:
            fits = fits & (worth > self.worth[-1])
        places = np.flatnonzero(fits)
        worth = worth.reshape(-1)[places].astype(np.float64)
        if len(worth) > self.top:
            likely = worth >= np.partition(worth, -self.top)[-self.top]
            places, worth = places[likely], worth[likely]
        pool = joined([*self.parts, points.select(places)])
        merged = np.concatenate([self.worth, worth])
        order = np.argsort(-merged, kind="stable")[: self.top]
        self.worth, self.parts = merged[order], [pool.select(order)]


def _counts(lattice: Lattice, points: Points) -> dict[str, NDArray[np.int64]]:
    return {kind: count[points.depth] for kind, count in lattice.kinds.items()}


def _totals(lattice: Lattice, workload: Workload, budget: Budget, points: Points, kept: Tally) -> Any:
    """Bytes of every point; `kept` is the tally of the lattice's depths."""
    return footprint(lattice.spec, workload, budget.workspace, points.sizes, tally=kept.at(points.depth)).total


def _worth(lattice: Lattice, shares: Shares | None, points: Points) -> Any:
    """What candidates are ranked by: effective parameters, or parameters where there are no scores."""
    if shares is not None:
        return shares.effective_parameters(points)
    return lattice.spec.parameters(points.sizes, _counts(lattice, points)).total


def _candidates(
    lattice: Lattice, workload: Workload, budget: Budget, shares: Shares | None, points: Points
) -> tuple[Candidate, ...]:
    """The points in full, counted again one by one in whole Python numbers."""
    spec = lattice.spec
    found = []
    for place, score in enumerate(points.spread(_worth(lattice, shares, points)).ravel().tolist()):
        sizes = spec.sizes | {axis: int(size[place]) for axis, size in points.sizes.items()}
        kept = lattice.depths[int(points.depth[place])]
        counts = {kind: int(count[points.depth[place]]) for kind, count in lattice.kinds.items()}
        tallied = tally(spec, precision_of(spec, workload.weights, workload.keep), [kept]).first
        bytes_ = footprint(spec, workload, budget.workspace, sizes, tally=tallied)
        found.append(
            Candidate(
                sizes={"num_hidden_layers": len(kept)}
                | {key: sizes[axes[0]] for key, axes in spec.keys.items() if lattice.has[key][points.depth[place]]},
                kept=kept,
                letters="".join(spec.letters[layer] for layer in kept),
                parameters=spec.parameters(sizes, counts).total,
                footprint=bytes_,
                fits=bytes_.total <= budget.available,
                score=score,
            )
        )
    return tuple(found)


def _miss(smallest: Candidate, budget: Budget, searched: int) -> str:
    """Why nothing fits."""
    need = smallest.footprint
    term = max(need.lines, key=lambda name: need.lines[name])
    which = "the only candidate" if searched == 1 else f"the smallest of {searched:,} candidates"
    return (
        f"nothing fits into {format_bytes(budget.available)}: {which} needs {format_bytes(need.total)}, "
        f"{format_bytes(need.total - budget.available)} too much, of which {term.replace('_', ' ')} takes the most, "
        f"{format_bytes(need.lines[term])}; prune more with --lattice or --layers, or ask for a shorter context, a "
        "smaller batch, narrower numbers or a larger GPU."
    )
