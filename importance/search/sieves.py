"""The first two sieves: memory in closed form, then trials of the candidates that the damage model ranks best.

Sieve 1 is the search over the whole lattice (minitron.search.search).  Sieve 2 measures each axis alone and some random
combinations, fits the damage model (importance.search.damage), ranks everything that fits by it and measures the best
for real; with what it learns it does so again, a few rounds.  The measured order is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from importance.search.damage import (
    Coordinates,
    DamageModel,
    Heldout,
    Setting,
    format_name,
    format_part,
    measure_curves,
)
from importance.search.draws import by_chance, draws_of, points_of
from importance.search.trial import Trial, Trials
from importance.search.verdicts import Entry, Sieved, Verdict, reason_of
from minitron.cut.plan import Plan, make_plan
from minitron.cut.scores import Scores
from minitron.cut.selection import Fallback
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.workload import Workload
from minitron.model.spec import DEPTH
from minitron.progress import Advance, Progress, silent
from minitron.search.candidate import Candidate
from minitron.search.counting import Worth, default_worth
from minitron.search.depth import Kept
from minitron.search.format_choices import KV, format_choices, share_lost
from minitron.search.gauge import broken
from minitron.search.lattice import Lattice, Points
from minitron.search.offered_formats import HEAD, form_of
from minitron.search.search import SearchResult, fitting, one_a_layout, search

Planner = Callable[..., Plan]
"""(config key -> size, kept layers, and where formats are searched those of each part) -> the plan that the candidate
would be cut by."""

POOL: Final = 512
"""Of so many best predicted ones a round chooses."""

NEAR: Final = 1.3
"""What is predicted to lose at most so many times what the best does is worth a measurement for its difference."""

SAME: Final = 0.05
"""Candidates nearer than this in the direction in which they were cut (DamageModel.directions, of length 1) lose
the same within what the model can tell."""

FEW: Final = 4
"""A round of fewer measurements spends none on less memory."""

STEP_DOWN: Final = 0.05
"""By so much of the budget each round's candidate of less memory stays below it."""

WARMTH: Final = 0.3
"""How far from the best predicted the combinations stray that are drawn near it: a candidate predicted to lose e^0.3
times as much is drawn 1/e times as often."""

FOCUS: Final = 0.5
"""How much more a good candidate weighs in the fit that ranks than one that loses more (DamageModel)."""

OBJECTIVE_NAMES: Final = {"kl": "KL to the parent", "perplexity": "perplexity against the parent's"}


@dataclass(frozen=True)
class SieveOptions:
    """How much is measured."""

    sizes: int = 3
    """Measured cuts of each axis alone."""

    combinations: int = 32
    """Random architectures that fit, to which the interactions of axes are fitted."""

    finalists: int = 24
    """Candidates that the model chooses to be measured."""

    rounds: int = 3
    """Number of equal rounds; before each the model is fitted again to all measurements."""

    top: int = 10
    """How many candidates come back."""

    seed: int = 0
    """Of the random architectures."""

    def __post_init__(self) -> None:
        for name, least in {"sizes": 1, "combinations": 4, "finalists": 1, "rounds": 1, "top": 1}.items():
            if getattr(self, name) < least:
                raise MinitronError(f"{name} is {getattr(self, name)}, too few for a search; give {least} or more.")


def planner(trials: Trials, scores: Scores, fallback: Fallback | None = None, **options: Any) -> Planner:
    """Plans by `scores`; `options` are those of minitron.cut.plan.make_plan."""

    def plan(sizes: Mapping[str, int], kept: Kept, formats: Mapping[str, str] | None = None) -> Plan:
        return make_plan(trials.spec, sizes, kept, scores, fallback=fallback, formats=formats, **options)

    return plan


def sieve(
    trials: Trials,
    lattice: Lattice,
    workload: Workload,
    budget: Budget,
    scores: Scores,
    *,
    plan: Planner | None = None,
    options: SieveOptions | None = None,
    family: Sequence[Budget] = (),
    progress: Progress = silent,
) -> Sieved:
    """The candidates of `lattice` that fit `budget`, of which trials find that they lose the least.

    `plan` makes the plan of an architecture, by the scores unless given.  With a store in the trials a search that was
    stopped goes on where it was: what it asks for is the same, and what is in the store is not measured again.  Where a
    `family` of budgets is searched one after the other, its own among them, each draws a share of the random
    combinations; in the order of the family they are the same for all, so that with one store each is measured once.
    Raises MinitronError where nothing fits."""
    options = options or SieveOptions()
    lattice = one_a_layout(lattice, scores)
    first = search(lattice, workload, budget, scores=scores, top=options.combinations + options.finalists)
    run = _Run(trials, lattice, workload, budget, scores, plan or planner(trials, scores), options, first.feasible)
    run.family = tuple(family) or (budget,)
    if first.feasible <= options.combinations + options.finalists:
        with progress("Measuring candidates", first.feasible, "candidates") as run.advance:
            run.measure(first.candidates, "all that fit were measured")
        return run.outcome(first)
    with progress("Measuring candidates", run.expected, "candidates") as run.advance:
        run.learn()
        for number in range(1, options.rounds + 1):
            run.round(number)
    return run.outcome(first)


class _Run:
    """A search under way."""

    def __init__(
        self,
        trials: Trials,
        lattice: Lattice,
        workload: Workload,
        budget: Budget,
        scores: Scores,
        plan: Planner,
        options: SieveOptions,
        feasible: int,
    ) -> None:
        self.trials, self.lattice, self.workload, self.budget, self.scores = trials, lattice, workload, budget, scores
        self.plan, self.options, self.feasible = plan, options, feasible
        self.coordinates = Coordinates(lattice, scores)
        self.measured: dict[tuple[Any, ...], Entry] = {}
        self.others: dict[tuple[Any, ...], Entry] = {}
        """What was drawn for other budgets of the family and does not fit this one: the model learns from it."""

        self.family: tuple[Budget, ...] = (budget,)
        self.alone: set[tuple[Any, ...]] = set()
        self.advance: Advance = lambda amount, note="": None
        self.model: DamageModel | None = None
        self.heldout: Heldout | None = None

    @property
    def expected(self) -> int:
        """Measurements to come: fewer where an axis has few sizes."""
        settings = {name: len(self.coordinates.settings(name)) for name in self.coordinates.names}
        most = {name: self.options.sizes if format_part(name) is None else number for name, number in settings.items()}
        curves = sum(min(most[name], number) for name, number in settings.items())
        return curves + self.options.combinations + self.options.finalists

    def learn(self) -> None:
        """Measure every axis alone, then random combinations: half anywhere, half where the curves like it."""
        self.curves = measure_curves(self.coordinates, self._loss, self.options.sizes)
        if self.lattice.formats:
            self._choose_formats()
        self.fit()
        draws = list(draws_of(self.family, self.options.combinations, self.options.seed))
        for budget, rng, share in draws:
            anywhere = Worth(partial(by_chance, rng), "chance")
            self.measure(self._best(anywhere, share // 2, budget), "a random combination, to fit the damage model")
        for budget, rng, share in draws:
            near = Worth(partial(self._likely, rng=rng), "chance")
            self.measure(
                self._best(near, 2 * share, budget),
                "a random combination near the best predicted, to fit the damage model",
                most=share - share // 2,
            )
        self.fit()
        assert self.model is not None
        self.heldout = self.model.heldout
        self.fit(FOCUS)

    def _choose_formats(self) -> None:
        """Let the lattice hold the assignments of formats that are best by what was measured, not by the prior."""
        tried = self.lattice.formats
        # An output layer may stay plain where all else must not.
        names = list(dict.fromkeys(form for one in tried for part, form in one.parts if part != HEAD))
        kv = list(dict.fromkeys(one.kv for one in tried if one.kv))
        damage: dict[tuple[str, str], float] = {}
        for part in tried[0].of:
            curve = self.curves.get(format_name(part))
            for form in kv if part == KV else dict.fromkeys([*names, self.workload.weights]):
                damage[part, form] = 0.0 if curve is None else float(curve.at(share_lost(form_of(form).relative_error)))
        formats = format_choices(self.lattice.spec, self.workload, names, kv, damage=damage, state=tried[0].state)
        self.lattice = replace(self.lattice, formats=formats)
        self.coordinates = Coordinates(self.lattice, self.scores)

    def _likely(self, points: Points, rng: np.random.Generator) -> NDArray[np.float64]:
        """Values whose largest are a draw without replacement, each with chances predicted^(-1 / WARMTH) (the Gumbel
        trick: Efraimidis and Spirakis 2006 in logarithms)."""
        assert self.model is not None
        predicted = points.spread(self.model.predict(points))
        return np.asarray(rng.gumbel(size=points.shape) - np.log(np.maximum(predicted, 1e-12)) / WARMTH)

    def _loss(self, setting: Setting) -> float:
        """One axis alone: measured for its curve; no candidate, for it need not fit."""
        found = self._run(setting)
        self.alone.add(self._key(setting))
        self.advance(1, f"alone: {found.loss:.4g}")
        return found.loss

    def _run(self, one: Candidate | Setting) -> Trial:
        formats = () if one.formats is None else (one.formats.to_json(),)
        return self.trials.run(self.plan(one.sizes, one.kept, *formats))

    def _key(self, one: Candidate | Setting) -> tuple[Any, ...]:
        """An architecture, however much of it was said."""
        sizes = self.lattice.spec.named_sizes | dict(one.sizes) | {DEPTH: len(one.kept)}
        formats = () if one.formats is None else tuple(sorted(one.formats.of.items()))
        return one.kept, tuple(sorted(sizes.items())), formats

    def _best(self, worth: Worth, top: int, budget: Budget) -> tuple[Candidate, ...]:
        if top < 1:
            return ()
        return search(self.lattice, self.workload, budget, scores=self.scores, worth=worth, top=top).candidates

    def _fits(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps the limits of this search, whatever it was drawn for."""
        budget = self.budget
        return candidate.footprint.total <= budget.available and not broken(budget.limits.given, candidate.measures)

    @property
    def known(self) -> list[Entry]:
        """All that was measured, but for one axis alone."""
        return [*self.others.values(), *self.measured.values()]

    def measure(self, candidates: Iterable[Candidate], origin: str, most: int | None = None) -> None:
        """Measure at most `most` candidates that were not measured before."""
        done = 0
        for candidate in candidates:
            key = self._key(candidate)
            if key in self.measured or key in self.others or (most is not None and done == most):
                continue
            predicted = None if self.model is None else float(self.model.predict(self.points([candidate]))[0])
            found = self._run(candidate)
            (self.measured if self._fits(candidate) else self.others)[key] = candidate, origin, predicted, found
            done += 1
            self.advance(1, f"least {min(entry[3].loss for entry in self.known):.4g}")

    def fit(self, focus: float = 0.0) -> None:
        """Fit the model to all candidates measured so far."""
        candidates = [entry[0] for entry in self.known]
        losses = [entry[3].loss for entry in self.known]
        self.model = DamageModel(self.coordinates, self.curves, self.points(candidates), losses, focus=focus)

    def points(self, candidates: Sequence[Candidate]) -> Points:
        """Candidates as points of the lattice."""
        return points_of(self.lattice, candidates)

    def round(self, number: int) -> None:
        """Measure one part of the finalists: what the model likes best, of that what differs most, and the best of less
        memory; then fit the model again."""
        assert self.model is not None
        model, options = self.model, self.options
        # The parts are as equal as they can be.
        wanted = options.finalists * number // options.rounds - options.finalists * (number - 1) // options.rounds
        found = search(
            self.lattice,
            self.workload,
            self.budget,
            scores=self.scores,
            worth=Worth(lambda points: -model.predict(points), "predicted loss"),
            top=POOL,
        )
        before = len(self.measured)
        if wanted >= FEW:
            smaller = self._smaller(found.front, number)
            self.measure(smaller, f"round {number}: the best predicted of less memory", most=1)
        pool = [candidate for candidate in found.candidates if self._key(candidate) not in self.measured]
        if number == options.rounds:
            for name, rival in found.rivals.items():
                self.measure([rival], f"the best predicted of {name}")
        left = wanted - (len(self.measured) - before)
        for candidate, why in self._choose(pool, left):
            self.measure([candidate], f"round {number}: {why}")
        self.fit(FOCUS)

    def _smaller(self, front: Sequence[Candidate], number: int) -> list[Candidate]:
        """Of the front of memory and predicted loss those that take less than the budget by STEP_DOWN each round, the
        largest first."""
        most = self.budget.available * (1.0 - STEP_DOWN * number)
        return [candidate for candidate in reversed(front) if candidate.footprint.total <= most]

    def _choose(self, pool: Sequence[Candidate], wanted: int) -> list[tuple[Candidate, str]]:
        """(candidate, why) for at most `wanted` of the pool, the best predicted first: half the best ones that are
        not nearly the same as what is known, half those of the good ones that are farthest from all of it."""
        if not pool or wanted < 1:
            return []
        assert self.model is not None
        predicted = self.model.predict(self.points(pool))
        places = self.model.directions(self.points(pool))
        known = self.model.directions(self.points([entry[0] for entry in self.known]))
        distance = np.linalg.norm(places[:, None] - known[None], axis=2).min(1, initial=np.inf)
        good = predicted <= NEAR * predicted[0]
        chosen: list[tuple[Candidate, str]] = []
        left = np.ones(len(pool), dtype=bool)
        for number in range(min(wanted, len(pool))):
            if number % 2 == 0:
                fresh = np.flatnonzero(left & (distance > SAME))
                place = int(fresh[0]) if len(fresh) else int(np.flatnonzero(left)[0])
                why = "among the best predicted"
            else:
                place = int(np.where(left & good, distance, -1.0).argmax())
                place = place if left[place] else int(np.flatnonzero(left)[0])
                why = "unlike the others among the best predicted"
            left[place] = False
            distance = np.minimum(distance, np.linalg.norm(places - places[place], axis=1))
            chosen.append((pool[place], why))
        return chosen

    def outcome(self, first: SearchResult) -> Sieved:
        """All that was measured, in the order of what was measured."""
        order = sorted(self.measured.values(), key=lambda entry: entry[3].loss)
        front = first.front
        if self.model is not None:
            predict = self.model.predict
            worth = Worth(lambda points: -predict(points), "predicted loss")
            front = search(
                self.lattice, self.workload, self.budget, scores=self.scores, worth=worth, top=self.options.top
            ).front
        ranks = self._ranks([entry[0] for entry in order])
        least, top = order[0][3].loss, self.options.top
        verdicts = tuple(
            Verdict(
                candidate=candidate,
                origin=origin,
                first_rank=ranks[0][place],
                predicted=predicted,
                predicted_rank=None if self.model is None else ranks[1][place],
                measured=measured,
                measured_rank=place + 1,
                kept=place < top,
                reason=reason_of(place, measured.loss, least, top, len(order)),
            )
            for place, (candidate, origin, predicted, measured) in enumerate(order)
        )
        name = OBJECTIVE_NAMES.get(self.trials.objective, self.trials.objective)
        result = replace(
            first,
            candidates=tuple(verdict.candidate for verdict in verdicts[:top]),
            ranking=f"ranked by {name}, measured on {self.trials.blocks.size:,} tokens",
            front=front,
        )
        evaluations = len(self.alone | self.measured.keys() | self.others.keys())
        return Sieved(result, verdicts, self.model, self.heldout, evaluations, self.trials.objective)

    def _ranks(self, candidates: Sequence[Candidate]) -> tuple[list[int], list[int]]:
        """(by sieve 1, by the damage model): the place of each candidate, from 1, among all that fit."""
        points = self.points(candidates)
        rankings = [default_worth(self.lattice, self.scores).of]
        if self.model is not None:
            predict = self.model.predict
            rankings.append(lambda points: -predict(points))
        own = [np.asarray(points.spread(ranking(points)), dtype=np.float64) for ranking in rankings]
        better = np.zeros((2, len(candidates)), dtype=np.int64)
        for block, fits in fitting(self.lattice, self.workload, self.budget):
            for number, ranking in enumerate(rankings):
                values = np.sort(np.asarray(block.spread(ranking(block)), dtype=np.float64)[fits])
                # A hair of slack: the same point summed in another order is no better than itself.
                slack = 1e-9 * np.abs(own[number])
                better[number] += len(values) - np.searchsorted(values, own[number] + slack, side="right")
        by_first, by_model = (better + 1).tolist()
        return by_first, by_model
