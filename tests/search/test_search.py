"""The search against a loop that does the same one candidate at a time, and against published choices."""

import itertools
import json
import tracemalloc
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
from planning_models import AMPLE, LONG, NANO_2, WORKLOAD, a10g, nano_12b, published, random_scores, tiny

from minitron.engines.plain import WORKSPACE
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.workload import Workload, workload_of
from minitron.search.candidate import Candidate
from minitron.search.counting import Worth
from minitron.search.depth import depths
from minitron.search.lattice import Lattice, parse_widths
from minitron.search.search import build_lattice, fitting, search
from minitron.units import GiB


def brute_force(lattice: Lattice, workload: Workload, budget: Budget) -> dict[Any, tuple[int, int]]:
    """architecture -> (bytes, parameters) in the order of the lattice, by building the config of each and counting."""
    spec = lattice.spec
    found: dict[Any, tuple[int, int]] = {}
    for kept in lattice.depths:
        for chosen in itertools.product(*lattice.widths.values()):
            given = dict(zip(lattice.widths, chosen, strict=True))
            hidden = given.get("hidden_size", spec.sizes["hidden"])
            sizes = {key: n if isinstance(n, int) else round(n.factor * hidden) for key, n in given.items()}
            heads = {
                key: sizes.get(key, spec.named_sizes[key]) for key in ("num_attention_heads", "num_key_value_heads")
            }
            if any(n > spec.named_sizes[key] for key, n in sizes.items()):
                continue
            # A KV head never serves more query heads than it did.
            per_group = spec.named_sizes["num_attention_heads"] // spec.named_sizes["num_key_value_heads"]
            if heads["num_attention_heads"] > per_group * heads["num_key_value_heads"]:
                continue
            try:
                model = spec.resized(sizes, kept)
            except MinitronError:
                continue
            name = (kept, tuple(sorted((key, n) for key, n in sizes.items() if key in model.keys)))
            found.setdefault(name, (footprint(model, workload, budget.workspace).total, model.parameters().total))
    return found


def names(candidates: Iterable[Candidate], lattice: Lattice) -> list[Any]:
    return [
        (c.kept, tuple(sorted((key, c.sizes[key]) for key in lattice.widths if key in c.sizes))) for c in candidates
    ]


# hidden_size stands first, as it does in a lattice's order.
AXES = {
    "hidden_size": "32,28,24",
    "intermediate_size": "1x,1.5x,2x,36,56",
    "mamba_num_heads": "4,6,8",
    "num_attention_heads": "1,2,3,4",
    "num_key_value_heads": "1,2",
    "n_routed_experts": "2,5",
    "head_dim": "8,12",
}


@cache
def counted() -> tuple[Lattice, Budget, dict[Any, tuple[int, int]]]:
    """A lattice, a budget that some of it fits, and all of it by brute force."""
    spec = tiny()
    lattice = Lattice(spec, depths(spec, WORKLOAD, 4, keep_attention=0), parse_widths(spec, AXES))
    budget = Budget(round(footprint(spec, WORKLOAD).total * 0.6), workspace=1000)
    return lattice, budget, brute_force(lattice, WORKLOAD, budget)


@pytest.mark.parametrize("sort", ["score", "memory"])
def test_the_search_finds_what_a_loop_finds_in_the_same_order(sort: str) -> None:
    spec = tiny()
    lattice, budget, every = counted()
    fitting = [name for name, (total, _) in every.items() if total <= budget.available]
    assert 0 < len(fitting) < len(every) < lattice.points
    result = search(lattice, WORKLOAD, budget, sort=sort, top=lattice.points)
    assert (result.searched, result.feasible) == (len(every), len(fitting))
    # sorted() keeps the order of equal ones, which is the lattice's.
    assert names(result.candidates, lattice) == sorted(fitting, key=lambda name: -every[name][sort == "score"])
    for candidate in result.candidates[:: len(fitting) // 20]:
        model = spec.resized(candidate.sizes, candidate.kept)
        assert model.named_sizes == candidate.sizes
        assert model.letters == candidate.letters
        assert model.parameters().total == candidate.parameters == candidate.score
        assert footprint(model, WORKLOAD, 1000) == candidate.footprint
        assert candidate.fits


@pytest.mark.parametrize("weights", ["gguf-bf16", "q4_k_m", "iq3_xxs", "q2_k"])
@pytest.mark.parametrize("pattern", ["*EM*ME", "M-*M*-"])
def test_a_search_counts_gguf_files_of_what_is_left(pattern: str, weights: str) -> None:
    """Which type a matrix takes depends on the number of experts, on heads, on widths and on the layers that stay: what
    is counted for many architectures at once is what each has alone."""
    spec = tiny(pattern, hidden_size=512, moe_intermediate_size=256, n_routed_experts=9, num_attention_heads=8)
    workload = Workload(64, 2, weights, "fp16")
    axes = {"hidden_size": "512,256,96", "n_routed_experts": "3,4,8,9", "num_key_value_heads": "1,2"}
    widths = parse_widths(spec, {key: sizes for key, sizes in axes.items() if key in spec.keys})
    lattice = Lattice(spec, depths(spec, workload, 3, keep_attention=0), widths)
    result = search(lattice, workload, AMPLE, top=lattice.points)
    assert result.searched > 10 and len({candidate.letters for candidate in result.candidates}) > 2
    for candidate in result.candidates:
        model = spec.resized(candidate.sizes, candidate.kept)
        assert footprint(model, workload) == candidate.footprint


def test_no_architecture_is_listed_twice() -> None:
    """Which of several equal layers goes makes no other architecture."""
    spec = tiny("MMM*--")
    one, other, third = (0, 1, 3, 4, 5), (1, 2, 3, 4, 5), (0, 1, 2, 3, 5)
    lattice = Lattice(spec, (one, other, third), parse_widths(spec, {"hidden_size": "24,28"}))
    result = search(lattice, WORKLOAD, AMPLE, top=100)
    assert result.searched == len(result.candidates) == 4
    assert {candidate.kept for candidate in result.candidates} == {one, third}
    for listed in (result.candidates, result.front):
        assert len({(tuple(c.sizes.items()), c.letters) for c in listed}) == len(listed)
    scores = random_scores(spec)
    scores.importance["layer", None][:] = [1, 2, 3, 4, 5, 6]
    result = search(lattice, WORKLOAD, AMPLE, scores=scores, top=100)
    assert {candidate.kept for candidate in result.candidates} == {other, third}


def test_the_front_is_what_no_other_architecture_beats() -> None:
    lattice, budget, every = counted()
    result = search(lattice, WORKLOAD, budget)
    unbeaten = {
        name
        for name, (total, worth) in every.items()
        if total <= result.parent.footprint.total
        and not any(t <= total and w >= worth and (t, w) != (total, worth) for t, w in every.values())
    }
    assert 20 < len(result.front) <= 60 < len(unbeaten)
    assert set(names(result.front, lattice)) <= unbeaten
    memory = [candidate.footprint.total for candidate in result.front]
    assert memory == sorted(memory)
    fitting = [candidate for candidate in result.front if candidate.fits]
    assert 0 < len(fitting) < len(result.front)
    assert fitting[-1].score == result.best.score
    assert result.front[-1].score == max(every[name][1] for name in unbeaten)


def test_the_best_are_the_first_of_all() -> None:
    lattice, *_ = counted()
    for sort in ("score", "memory"):
        every = search(lattice, WORKLOAD, AMPLE, sort=sort, top=lattice.points).candidates
        assert search(lattice, WORKLOAD, AMPLE, sort=sort, top=5).candidates == every[:5]
    totals = [candidate.footprint.total for candidate in every]
    assert totals == sorted(totals, reverse=True)


def test_a_model_that_fits_is_left_alone() -> None:
    spec = tiny()
    result = search(build_lattice(spec, WORKLOAD), WORKLOAD, AMPLE)
    assert result.best.sizes == spec.named_sizes == result.parent.sizes
    assert result.best.kept == tuple(range(8))
    assert result.parent.fits


@pytest.mark.parametrize("workspace", [0.5, 0.65, 0.8])
def test_nvidias_choice_of_nano_2_comes_out(workspace: float) -> None:
    spec = nano_12b()
    workload = workload_of(spec, LONG)
    lattice = build_lattice(spec, workload, lattice=NANO_2, layers=56)
    result = search(lattice, workload, a10g(round(workspace * GiB)), sort="memory", top=3)
    assert result.searched == 27
    chosen = [
        [c.sizes[key] for key in ("hidden_size", "intermediate_size", "mamba_num_heads")] for c in result.candidates
    ]
    assert chosen == [[4800, 14400, 120], [4480, 17920, 112], [4480, 15680, 128]]
    plain = [round((c.footprint.total - c.footprint.workspace) / GiB, 3) for c in result.candidates]
    assert plain == [18.825, 18.738, 18.689]
    assert result.candidates[2].parameters == published("Nemotron-Nano-9B-v2").parameters().total
    assert not result.parent.fits


def test_a_budget_that_nothing_meets_says_by_how_much() -> None:
    spec = tiny()
    lattice = build_lattice(spec, WORKLOAD)
    every = search(lattice, WORKLOAD, AMPLE, top=lattice.points)
    least = min(candidate.footprint.total for candidate in every.candidates)
    assert search(lattice, WORKLOAD, Budget(least)).best.footprint.total == least
    with pytest.raises(MinitronError) as caught:
        search(lattice, WORKLOAD, Budget(least - 2048))
    assert f"the smallest of {every.searched:,} candidates needs" in str(caught.value)
    assert "2.000 KiB too much (the largest part: weights" in str(caught.value)
    long = Workload(10**6, 64)
    with pytest.raises(MinitronError, match="the largest part: kv cache"):
        search(build_lattice(spec, long), long, Budget(least))


def test_a_lattice_of_nothing_but_contradictions() -> None:
    spec = tiny()
    lattice = build_lattice(spec, WORKLOAD, lattice={"intermediate_size": "5x"})
    with pytest.raises(MinitronError, match="no valid architecture"):
        search(lattice, WORKLOAD, AMPLE)


def test_millions_of_candidates_in_bounded_memory() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    workload = workload_of(spec, LONG)
    lattice = build_lattice(spec, workload)
    assert lattice.points > 4_000_000
    budget = Budget(find_gpu("H100-80GB-SXM").usable, 0.95, workspace=WORKSPACE)
    tracemalloc.start()
    try:
        result = search(lattice, workload, budget)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.searched == lattice.points
    assert 0 < result.feasible < result.searched
    assert peak < 64 * 2**20


def test_the_document_holds_what_others_rely_on() -> None:
    spec = nano_12b()
    workload = workload_of(spec, LONG)
    budget = a10g(WORKSPACE)
    document = json.loads(json.dumps(search(build_lattice(spec, workload), workload, budget).to_json()))
    assert list(document) == [
        *("gpu", "workload", "budget", "parent", "candidates", "chosen", "searched", "feasible", "ranking", "front"),
    ]
    assert document["gpu"] == "A10G"
    assert document["workload"]["context"] == LONG
    assert document["parent"]["footprint"]["total"] == sum(
        document["parent"]["footprint"][term]
        for term in ("weights", "kv_cache", "conv_state", "ssm_state", "workspace")
    )
    for candidate in [document["parent"], *document["candidates"], *document["front"]]:
        assert {"sizes", "layers", "parameters", "footprint", "fits", "score", "warnings"} <= set(candidate)
        assert all(set(warning) == {"name", "sentence", "source"} for warning in candidate["warnings"])
        assert all(isinstance(value, int) for value in candidate["footprint"].values())
        assert candidate["sizes"]["num_hidden_layers"] == len(candidate["layers"]) == len(candidate["kept_layers"])
        assert candidate["fits"] == (candidate["footprint"]["total"] <= document["budget"]["available"])
    assert document["chosen"] == 0
    assert "no scores given" in document["ranking"]


def test_what_a_caller_finds_worth_more_comes_first() -> None:
    spec = tiny()
    lattice = Lattice(spec, depths(spec, WORKLOAD, 4, keep_attention=0), parse_widths(spec, AXES))
    budget = Budget(round(footprint(spec, WORKLOAD).total * 0.6), workspace=1000)
    # Narrow streams first, then many experts.
    worth = Worth(lambda points: 100 * (32 - points.sizes["hidden"]) + points.sizes["expert"], "the caller's taste")
    every = search(lattice, WORKLOAD, budget, top=lattice.points).candidates
    found = search(lattice, WORKLOAD, budget, worth=worth, top=50)
    ordered = sorted(every, key=lambda one: (one.sizes["hidden_size"], -one.sizes.get("n_routed_experts", 6)))
    tastes = [(one.sizes["hidden_size"], one.sizes.get("n_routed_experts", 6)) for one in found.candidates]
    assert tastes == [(one.sizes["hidden_size"], one.sizes.get("n_routed_experts", 6)) for one in ordered[:50]]
    assert found.ranking == "ranked by the caller's taste"
    assert {one.score for one in found.candidates} == {float(one.parameters) for one in found.candidates}
    masks = [(points, fits) for points, fits in fitting(lattice, WORKLOAD, budget)]
    assert sum(int(fits.sum()) for _, fits in masks) == found.feasible == len(every)
