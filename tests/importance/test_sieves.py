"""The sieves against the whole truth: every feasible candidate measured, and a search that is killed and goes on."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planning_models import WORKLOAD, random_scores, tiny

from importance.score.blocks import split_blocks
from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from importance.search.least_squares import spearman
from importance.search.sieves import Sieved, SieveOptions, sieve
from importance.search.trial import Trial, Trials
from minitron.builtin import CALIBRATION, MODEL
from minitron.cut.plan import Plan, make_plan
from minitron.cut.scores import Scores
from minitron.errors import MinitronError, NothingFits
from minitron.measure.text import token_blocks
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.counting import default_worth
from minitron.search.depth import depths
from minitron.search.format_choices import Formats, format_choices, written_of
from minitron.search.lattice import Lattice, Points, parse_widths
from minitron.search.offered_formats import parts_of
from minitron.search.search import fitting, one_a_layout, search

AXES = {
    "hidden_size": "32,28,24,20",
    "intermediate_size": "32,40,48,56",
    "mamba_num_heads": "4,6,8",
    "n_routed_experts": "2,3,4,5,6",
    "moe_intermediate_size": "12,16,20,24",
    "moe_shared_expert_intermediate_size": "20,28,32,40",
}
RATES = {"hidden_size": 0.9, "intermediate_size": 0.1, "mamba_num_heads": 0.5, "n_routed_experts": 0.7}


class Oracle(Trials):
    """Knows what every architecture of a model loses: no model is cut."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.objective, self.blocks, self.asked = spec, "kl", np.zeros((2, 8), dtype=np.int64), 0

    def run(self, plan: Plan) -> Trial:
        self.asked += 1
        loss = truth(self.spec, plan.sizes, plan.layers)
        return Trial(loss, loss, 1.0, 1.0, 0.0)


def truth(spec: ModelSpec, sizes: Mapping[str, int], kept: tuple[int, ...]) -> float:
    """A quadratic form that saturates, and a little of what no model of ours knows."""
    shares = {key: 1 - sizes.get(key, spec.named_sizes[key]) / spec.named_sizes[key] for key in AXES}
    shares["layers"] = 1 - len(kept) / len(spec.layers)
    pushes = np.array(
        [RATES.get(key, 0.3) * share ** (0.7 + 0.05 * i) for i, (key, share) in enumerate(shares.items())]
    )
    whole = float(np.square(pushes).sum() + 0.3 * np.square(pushes.sum()))
    noise = np.random.default_rng(int(1e6 * sum(shares.values()))).normal()
    return whole / (1 + 0.3 * whole) * float(np.exp(0.03 * noise))


def plan_of(spec: ModelSpec) -> Any:
    return lambda sizes, kept, formats=None: make_plan(spec, sizes, kept, formats=formats)


class FormatOracle(Oracle):
    """Knows what formats lose too: Mamba most, so that a prior that knows no parts is wrong."""

    def run(self, plan: Plan) -> Trial:
        self.asked += 1
        loss = truth(self.spec, plan.sizes, plan.layers) + lost_to_formats(plan.formats)
        return Trial(loss, loss, 1.0, 1.0, 0.0)


def lost_to_formats(formats: Mapping[str, str]) -> float:
    rates = {"bf16": 0.0, "int8": 0.0004, "int4": 0.03}
    return sum(rates[form] * (8.0 if part == "ssm" else 0.5) for part, form in formats.items())


def test_bits_and_sizes_are_found_together() -> None:
    spec = tiny(hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    workload = replace(WORKLOAD, weights="bf16", kv="bf16", keep={"lm_head": "bf16"})
    scores, oracle = random_scores(spec), FormatOracle(spec)
    widths = {"hidden_size": "64,56,48", "intermediate_size": "64,48,32", "moe_intermediate_size": "32,24,16"}
    lattice = Lattice(spec, (tuple(range(8)), tuple(range(7))), parse_widths(spec, widths))
    formats = format_choices(spec, workload, ["bf16", "int8", "int4"])
    lattice = replace(lattice, formats=formats)
    budget = Budget(round(0.66 * footprint(spec, workload).total))
    losses = []
    for forms in product(("bf16", "int8", "int4"), repeat=len(parts_of(spec))):
        chosen = dict(zip(parts_of(spec), forms, strict=True))
        main, _ = written_of(chosen, spec.parameters().by_component) or ("bf16", {})
        single = replace(lattice, formats=(Formats(main, tuple(chosen.items())),))
        for points, mask in fitting(single, workload, budget):
            fits = points.select(np.flatnonzero(mask))
            losses += [truth_at(single, fits, at) + lost_to_formats(chosen) for at in range(fits.shape[0])]

    found = sieve(oracle, lattice, workload, budget, scores, plan=plan_of(spec))

    best = found.verdicts[0]
    assert found.evaluations <= oracle.asked < 100
    assert best.measured.loss <= 1.15 * min(losses)
    assert best.candidate.formats is not None
    assert best.candidate.formats.of["ssm"] != "int4"
    assert found.model is not None
    curve = found.model.curves["format of ssm"]
    assert curve.losses == pytest.approx((0.0032, 0.24))
    left = spec.resized(best.candidate.sizes, best.candidate.kept)
    assert best.candidate.footprint.total == footprint(left, best.candidate.formats.on(workload)).total


def truth_at(lattice: Lattice, points: Points, at: int) -> float:
    sizes = {lattice.spec.key(axis): int(size[at]) for axis, size in points.sizes.items()}
    return truth(lattice.spec, sizes, lattice.depths[int(points.depth[at])])


@pytest.mark.parametrize("share", [pytest.param(0.85, marks=pytest.mark.slow), 0.65])
def test_few_measurements_find_what_measuring_all_would(share: float) -> None:
    spec = tiny()
    scores, oracle = random_scores(spec), Oracle(spec)
    lattice = Lattice(spec, depths(spec, WORKLOAD, 5, scores=scores), parse_widths(spec, AXES))
    budget = Budget(round(share * footprint(spec, WORKLOAD).total))
    every = search(lattice, WORKLOAD, budget, scores=scores, top=lattice.points).candidates
    losses = np.array([truth(spec, candidate.sizes, candidate.kept) for candidate in every])

    found = sieve(oracle, lattice, WORKLOAD, budget, scores, plan=plan_of(spec))

    assert len(every) > 1000
    assert found.evaluations <= oracle.asked < 80
    best = found.result.best
    assert truth(spec, best.sizes, best.kept) <= 1.1 * losses.min()
    # The model, fitted to a few dozen, against the truth of all.
    assert found.model is not None
    assert found.heldout is not None
    measured = [verdict.measured.loss for verdict in found.verdicts]
    assert measured == sorted(measured)
    assert found.heldout.rank_correlation > 0.9
    assert all(verdict.candidate.fits for verdict in found.verdicts)
    check_ranks(found, lattice, scores, every, losses)


def check_ranks(found: Sieved, lattice: Lattice, scores: Scores, every: Any, losses: np.ndarray) -> None:
    """Places among all that fit, against a plain sort."""
    spec, model = lattice.spec, found.model
    assert model is not None
    names = [(candidate.kept, tuple(candidate.sizes.items())) for candidate in every]
    single = one_a_layout(lattice, scores)
    ranked = search(
        single, WORKLOAD, found.result.budget, scores=scores, worth=default_worth(single, scores), top=len(every)
    )
    by_score = [(candidate.kept, tuple(candidate.sizes.items())) for candidate in ranked.candidates]
    assert by_score == names
    predicted = []
    for verdict in found.verdicts:
        place = names.index((verdict.candidate.kept, tuple(verdict.candidate.sizes.items())))
        # Equal ones share the first of their places.
        assert verdict.first_rank <= place + 1
        assert every[verdict.first_rank - 1].score == pytest.approx(verdict.candidate.score)
        assert verdict.predicted_rank is not None
        predicted.append(verdict.predicted_rank)
        assert verdict.measured.loss == truth(spec, verdict.candidate.sizes, verdict.candidate.kept)
    assert (
        spearman(np.array(predicted, float), np.array([verdict.measured_rank for verdict in found.verdicts], float))
        > 0.9
    )


def test_verdicts_say_why() -> None:
    spec = tiny()
    scores = random_scores(spec)
    lattice = Lattice(spec, depths(spec, WORKLOAD, 5, scores=scores), parse_widths(spec, AXES))
    budget = Budget(round(0.7 * footprint(spec, WORKLOAD).total))
    options = SieveOptions(sizes=2, combinations=8, finalists=8, rounds=2, top=3)
    found = sieve(Oracle(spec), lattice, WORKLOAD, budget, scores, plan=plan_of(spec), options=options)

    assert [verdict.candidate for verdict in found.verdicts[:3]] == list(found.result.candidates)
    assert found.result.ranking == "ranked by KL to the parent, measured on 16 tokens"
    assert [verdict.kept for verdict in found.verdicts] == [place < 3 for place in range(16)]
    assert found.verdicts[0].reason == "chosen: the least loss of the 16 that were measured"
    last = found.verdicts[-1]
    times = last.measured.loss / found.verdicts[0].measured.loss
    assert last.reason == f"dropped: {times:.3g} times the least loss"
    origins = [verdict.origin for verdict in found.verdicts]
    assert sum("random combination" in origin for origin in origins) == 8
    assert sum(origin.startswith("round 1") for origin in origins) == 4
    assert sum("less memory" in origin for origin in origins) == 2
    smaller = [verdict for verdict in found.verdicts if "round 2: the best predicted of less" in verdict.origin]
    assert smaller[0].candidate.footprint.total <= 0.9 * budget.available
    told = found.to_json()
    assert len(told["verdicts"]) == 16
    assert told["verdicts"][0]["measured"]["kl"] == found.verdicts[0].measured.kl
    assert told["heldout_rank_correlation"] == found.heldout.rank_correlation  # type: ignore[union-attr]
    assert found.near_ties(1.0) == found.result.candidates[:1]
    assert len(found.near_ties(100.0, most=5)) == 5


def test_where_few_fit_all_are_measured() -> None:
    spec = tiny()
    scores, oracle = random_scores(spec), Oracle(spec)
    lattice = Lattice(spec, (tuple(range(8)),), parse_widths(spec, {"hidden_size": "32,28,24,20"}))
    budget = Budget(round(0.95 * footprint(spec, WORKLOAD).total))
    found = sieve(oracle, lattice, WORKLOAD, budget, scores, plan=plan_of(spec))
    assert (oracle.asked, found.evaluations, found.result.feasible) == (3, 3, 3)
    assert [candidate.sizes["hidden_size"] for candidate in found.result.candidates] == [28, 24, 20]
    assert found.model is None
    assert {verdict.predicted_rank for verdict in found.verdicts} == {None}
    assert found.to_json()["damage_model"] is None


def test_what_cannot_be_searched_is_refused() -> None:
    spec = tiny()
    scores = random_scores(spec)
    lattice = Lattice(spec, (tuple(range(8)),), parse_widths(spec, {"hidden_size": "32,28"}))
    with pytest.raises(NothingFits):
        sieve(Oracle(spec), lattice, WORKLOAD, Budget(1000), scores, plan=plan_of(spec))
    with pytest.raises(MinitronError, match="finalists is 0, too few"):
        SieveOptions(finalists=0)


class Killed(Exception):
    """Stands for a machine that stops."""


def test_a_search_that_is_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spec = read_spec(MODEL)
    model = load_model(MODEL, dtype=torch.float32, device=torch.device("cpu"))
    text = token_blocks(load_tokenizer(MODEL), CALIBRATION, sequence_length=64, samples=10)
    calibration, judging = split_blocks(text, 2)
    scores = score_model(model, spec, calibration, ScoringOptions(batch_size=8, layers="fast"))
    widths = {"hidden_size": "256,224,192", "n_routed_experts": "8,6,4", "mamba_num_heads": "16,12"}
    lattice = Lattice(spec, (tuple(range(12)),), parse_widths(spec, widths))
    budget = Budget(round(0.85 * footprint(spec, WORKLOAD).total))
    options = SieveOptions(sizes=1, combinations=4, finalists=3, rounds=2)

    def run(store: Path | None, stop_after: int = 100) -> tuple[Sieved, int]:
        trials = Trials(model, spec, judging, batch_size=2, store=store)
        measure = trials._run

        def counted(plan: Plan) -> Trial:
            if trials.measured == stop_after:
                raise Killed
            return measure(plan)

        trials._run = counted  # type: ignore[method-assign]
        return sieve(trials, lattice, WORKLOAD, budget, scores, options=options), trials.measured

    whole, measured = run(None)
    with pytest.raises(Killed):
        run(tmp_path / "measured.jsonl", 5)
    resumed, again = run(tmp_path / "measured.jsonl")
    assert measured == whole.evaluations == 9
    assert again == measured - 5
    losses = [[verdict.measured.loss for verdict in found.verdicts] for found in (whole, resumed)]
    assert losses[0] == losses[1]
    assert whole.result.candidates == resumed.result.candidates
    assert losses[0][0] > 0
    assert run(tmp_path / "measured.jsonl")[1] == 0
