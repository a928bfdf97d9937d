"""The search: computes the memory of every point of a lattice, ranks those that fit, and returns the best.

Nothing is loaded and nothing is guessed: a candidate's bytes follow from its sizes alone (minitron.memory.footprint).
Points are counted in chunks, so that memory stays bounded however large the lattice is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.engines.table import ENGINES
from minitron.errors import MinitronError, NothingFits
from minitron.memory.budget import Budget
from minitron.memory.limits import Held, excess
from minitron.memory.workload import Workload
from minitron.model.spec import DEPTH, ModelSpec
from minitron.search.candidate import Candidate, Zone
from minitron.search.counting import Counter, Worth, default_worth, first_forms
from minitron.search.depth import Kept, LayerLimits, depth_of, depths, layer_scores, match_pattern, mixes
from minitron.search.effective_parameters import EffectiveParameters
from minitron.search.gauge import Bindings
from minitron.search.lattice import (
    Lattice,
    LatticeOptions,
    Points,
    default_widths,
    fewest_layers,
    parse_widths,
)
from minitron.search.misses import broken_limits, too_large
from minitron.search.pareto import Best, Front
from minitron.search.search_steps import config_key
from minitron.search.sweep import Sweep
from minitron.search.thinning import thinned

if TYPE_CHECKING:
    from minitron.cut.scores import Scores

SORTS: Final = {
    "score": "ranked by {score}",
    "memory": "ranked by memory, the largest that fits first",
}
"""How candidates can be ordered -> how the order is told."""


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

    limits: tuple[Held, ...] = ()
    """Every limit, memory among them, and which binds; empty where memory is the only one."""

    front: tuple[Candidate, ...] = ()
    """The architectures that no other beats in (memory, score), the smallest first, whether they fit or not, up to the
    memory of the model itself; thinned to some dozens (minitron.search.pareto)."""

    rivals: Mapping[str, Candidate] = field(default_factory=dict)
    """Where formats are searched: a name in RIVALS -> the best candidate of that kind, where one fits."""

    @property
    def best(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    def served(self, left: ModelSpec, candidate: Candidate | None = None) -> Workload:
        """The workload with the formats of a candidate, the chosen one unless another is given; `left` is the spec of
        what it leaves of the model."""
        formats = (candidate or self.best).formats
        return self.workload if formats is None else formats.on(self.workload, left)

    @property
    def warnings(self) -> tuple[Zone, ...]:
        """What published runs say against the chosen candidate."""
        return self.best.warnings

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
            "front": [candidate.to_json() for candidate in self.front],
            **({"rivals": {name: one.to_json() for name, one in self.rivals.items()}} if self.rivals else {}),
            **({"limits": self.limits_held()} if self.limits else {}),
        }

    def limits_held(self) -> list[dict[str, Any]]:
        """Every limit beside what the model and the chosen candidate come to, as JSON."""
        return [held.to_json(self.best.measures[held.name]) for held in self.limits]


def build_lattice(
    spec: ModelSpec,
    workload: Workload,
    *,
    lattice: Mapping[str, str] | None = None,
    layers: int | None = None,
    pattern: str | None = None,
    keep_attention: int | None = None,
    scores: Scores | None = None,
    options: LatticeOptions | None = None,
) -> Lattice:
    """The lattice that a person asks for.

    `lattice` is config key -> sizes as typed (`4480,4800` or `3x,3.5x`); once it names one key, what neither it nor the
    options name stays at the model's size.  `layers` or `pattern` set the depth.  What none of them says follows from
    the rows of the axes (minitron.model.axes), less what the engine leaves whole (minitron.engines.table), in steps so
    wide that no more than minitron.search.thinning.MOST points are left.  Raises MinitronError for what contradicts
    itself or cannot be reached."""
    options = options or LatticeOptions()
    by_hand = dict(lattice or {})
    counts = by_hand.pop(DEPTH, None)
    if sum(given is not None for given in (layers, pattern, counts)) > 1:
        raise MinitronError("the depth is given twice; choose one of --layers, --pattern and num_hidden_layers.")
    if pattern is not None and keep_attention is not None:
        raise MinitronError("--pattern conflicts with --keep-attention; drop one.")
    _require_no_contradiction(spec, options, by_hand, pattern, [layers, pattern, counts])
    widths, wanted = default_widths(spec, options), options.keys(spec)
    if lattice:
        widths = parse_widths(spec, by_hand) | {key: sizes for key, sizes in widths.items() if key in wanted}
    else:
        left = {spec.key(axis) for axis in ENGINES[workload.engine.name].leaves if axis in spec.sizes} - wanted
        widths = {key: sizes for key, sizes in widths.items() if key not in left}
    numbers = [layers] if layers is not None else _layer_counts(counts) if counts else []
    limits: dict[str, Any] = {"scores": scores, "keep_attention": keep_attention, "limits": options.layers}
    if pattern is not None:
        kept: tuple[Kept, ...] = (match_pattern(spec, pattern, scores),)
    elif numbers:
        kept = tuple(depth_of(spec, workload, number, **limits) for number in numbers)
    else:
        still = (
            lattice and DEPTH not in options.keys(spec) and options.layers == LayerLimits() and not options.every_mix
        )
        fewest = len(spec.layers) if still else fewest_layers(spec, options)
        kept = (mixes if options.every_mix else depths)(spec, workload, fewest, **limits)
    kept = _in_steps(spec, kept, options)
    if not lattice:
        widths = thinned(widths, len(kept), wanted)
    return Lattice(spec, kept, widths)


def _require_no_contradiction(
    spec: ModelSpec, options: LatticeOptions, by_hand: Mapping[str, str], pattern: str | None, depth: list[Any]
) -> None:
    """Raise MinitronError where the options and the rest say different things about one axis."""
    wanted, left = options.keys(spec), {config_key(spec, name, cut=False) for name in options.leave}
    for key in by_hand:
        if key in wanted | left:
            raise MinitronError(f"--lattice {key} conflicts with --multiple, --most or --leave for it; drop one.")
    if DEPTH in wanted | left and any(given is not None for given in depth):
        raise MinitronError(
            "the depth is fixed by --layers, --pattern or --lattice, which conflicts with --multiple, "
            "--most or --leave for it; drop one."
        )
    if pattern is not None and (options.layers != LayerLimits() or options.every_mix):
        raise MinitronError("--pattern conflicts with --may-go, --at-least, --at-most and --every-mix; drop one.")
    if options.every_mix and any(given is not None for given in depth):
        raise MinitronError(
            "--every-mix conflicts with a depth fixed by --layers or --lattice num_hidden_layers; drop one."
        )


def _in_steps(spec: ModelSpec, kept: tuple[Kept, ...], options: LatticeOptions) -> tuple[Kept, ...]:
    """The depths that are a multiple of what was asked for, the first always."""
    multiple = options.step(spec, "layer").multiple
    return tuple(one for place, one in enumerate(kept) if place == 0 or len(one) % multiple == 0)


def _layer_counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise MinitronError(f"num_hidden_layers: {text!r} is not a list of numbers; write it like 54,56.")
    return sorted({int(word) for word in words}, reverse=True)


def search(
    lattice: Lattice,
    workload: Workload,
    budget: Budget,
    *,
    scores: Scores | None = None,
    sort: str = "score",
    worth: Worth | None = None,
    top: int = 10,
) -> SearchResult:
    """The `top` best architectures of the lattice that fit the budget.

    `sort` is a name in SORTS: `score` ranks by effective parameters (minitron.search.effective_parameters) where scores
    are given and by kept parameters where not, `memory` by the footprint; of equal ones the first of the lattice comes
    first.  `worth` stands in for `score`, also in the front; a candidate's own score is not changed by it. Raises
    MinitronError where nothing fits, with what the smallest lacks."""
    if sort not in SORTS:
        raise MinitronError(f"candidates cannot be sorted by {sort!r}; choose {' or '.join(SORTS)}.")
    if top < 1:
        raise MinitronError(f"--top {top} lists no candidate; give 1 or more.")
    lattice = one_a_layout(lattice, scores)
    spec = lattice.spec
    shares = None if scores is None else EffectiveParameters(lattice, scores)
    worth = worth or default_worth(lattice, scores, shares)
    count = Counter(workload, budget)
    whole = Lattice(spec, (tuple(range(len(spec.layers))),), {})
    parent = count.candidates(whole, None, Points(np.zeros(1, dtype=np.int64), {}, (1,)))[0]
    sweep = Sweep(count, budget, worth, sort, Best(top), Front(parent.footprint.total, budget.available))
    if budget.limits.given:
        sweep.bindings = Bindings(count.gauge(lattice))
    sweep.over(lattice)
    if not sweep.searched:
        raise MinitronError(
            "the lattice holds no valid architecture: sizes must not exceed the model's and groups must "
            "divide evenly; give more sizes."
        )
    if not sweep.feasible and sweep.bindings is not None and sweep.bindings.nearest is not None:
        nearest = count.candidates(lattice, None, sweep.bindings.nearest[1])[0]
        raise NothingFits(broken_limits(nearest, sweep.bindings.gauge.limits, sweep.searched))
    if not sweep.feasible:
        assert sweep.smallest is not None
        smallest = count.candidates(lattice, None, sweep.smallest[1])[0]
        raise NothingFits(too_large(smallest, budget, sweep.searched))
    return SearchResult(
        budget=budget,
        workload=workload,
        parent=parent,
        candidates=count.candidates(lattice, shares, sweep.best.points),
        searched=sweep.searched,
        feasible=sweep.feasible,
        ranking=SORTS[sort].format(score=worth.ranking),
        limits=() if sweep.bindings is None else sweep.bindings.held(parent.measures, float(sweep.best.worth[0])),
        front=count.candidates(lattice, shares, sweep.front.points()),
        rivals={
            name: count.candidates(lattice, shares, best.points)[0]
            for name, best in sweep.rivals.items()
            if len(best.worth)
        },
    )


def fitting(lattice: Lattice, workload: Workload, budget: Budget) -> Iterator[tuple[Points, NDArray[np.bool_]]]:
    """Every point of the lattice in blocks, in the formats that are tried with every architecture, each with a mask of
    those that fit the budget."""
    count = Counter(workload, budget)
    gauge = count.gauge(lattice) if budget.limits.given else None
    for points, allowed, totals in count.blocks(lattice, first_forms(lattice)):
        fits = allowed & (totals <= budget.available)
        if gauge is not None:
            for name, value in gauge.values(points, totals).items():
                fits = fits & (excess(name, value, gauge.limits[name]) <= 1)
        yield points, fits


def one_a_layout(lattice: Lattice, scores: Scores | None) -> Lattice:
    """The lattice with one depth for each sequence of layers: which of several equal layers went makes no other
    architecture.  The one that keeps the most by the scores stays, without scores the first."""
    worth = layer_scores(lattice.spec, scores)
    found: dict[str, Kept] = {}
    for kept in lattice.depths:
        letters = "".join(lattice.spec.letters[layer] for layer in kept)
        rival = found.setdefault(letters, kept)
        if worth is not None and worth[list(kept)].sum() > worth[list(rival)].sum():
            found[letters] = kept
    return replace(lattice, depths=tuple(found.values())) if len(found) < len(lattice.depths) else lattice
