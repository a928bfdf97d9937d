"""Depths, the lattice, the ranking and the search, against loops that do the same one candidate at a time."""

import itertools
import json
import tracemalloc
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HYBRID_SIZES, LAYERS, PATTERN

from minitron.depth import attention_floor, depth_of, depths, match_pattern
from minitron.errors import MinitronError
from minitron.gpus import find_gpu
from minitron.lattice import STEPS, Lattice, Times, default_widths, parse_widths
from minitron.memory import WORKSPACE, Budget, Workload, footprint, workload_of
from minitron.scores import Scores
from minitron.search import SearchResult, build_lattice, search
from minitron.selection import choose
from minitron.shares import Shares
from minitron.spec import ModelSpec, read_spec, spec_of
from minitron.units import GiB

MODELS = Path(__file__).parent / "reference" / "models"
LONG = 128 * 1024
WORKLOAD = Workload(64, 2, "fp32", "fp32", "fp32", "fp32")
AMPLE = Budget(GiB)

# NVIDIA's choice for Nemotron Nano 2: hidden x ffn / hidden x Mamba heads, 27 points at 56 layers.
NANO_2 = {
    "hidden_size": "4480,4800,5120",
    "mamba_num_heads": "112,120,128",
    "intermediate_size": "3x,3.5x,4x",
}


def published(name: str) -> ModelSpec:
    return read_spec(MODELS / f"{name}.json")


def nano_12b() -> ModelSpec:
    return published("Nemotron-Nano-12B-v2")


def tiny(pattern: str = PATTERN, **sizes: Any) -> ModelSpec:
    words = [LAYERS[letter] for letter in pattern]
    return spec_of({"model_type": "nemotron_h", "layers_block_type": words} | HYBRID_SIZES | sizes)


def a10g(workspace: int) -> Budget:
    return Budget(find_gpu("A10G").usable, 0.95, round(1.3 * GiB), workspace, find_gpu("A10G"))


def random_scores(spec: ModelSpec, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    size = Counter(spec.sizes)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "mamba": {"mamba_channel": (size["mamba_head"], size["mamba_head_dim"])},
        "attention": {"query_head": (size["query_head"],)},
        "mlp": {"ffn": (size["ffn"],)},
        "moe": {
            "expert": (size["expert"],),
            "expert_ffn": (size["expert"], size["expert_ffn"]),
            "shared_ffn": (size["shared_ffn"],),
        },
    }
    importance: dict[Any, Any] = {
        ("hidden", None): rng.random(size["hidden"]),
        ("layer", None): rng.random(len(spec.layers)),
    }
    for layer, kind in enumerate(spec.layers):
        importance |= {(axis, layer): rng.random(shape) ** 2 for axis, shape in shapes[kind].items()}
    return Scores(importance, {}, spec.fingerprint, "")


def left(spec: ModelSpec, kept: tuple[int, ...]) -> str:
    return "".join(spec.letters[layer] for layer in kept)


# --- depth


def test_56_layers_of_nano_12b_are_those_of_the_published_9b() -> None:
    spec = nano_12b()
    kept = depth_of(spec, workload_of(spec, LONG), 56)
    assert Counter(left(spec, kept)) == Counter(published("Nemotron-Nano-9B-v2").letters) == {"M": 27, "*": 4, "-": 25}
    # Every MLP still follows a Mamba or an attention layer, and the ends are whole.
    assert "--" not in left(spec, kept)
    assert kept[:8] == tuple(range(8))
    assert kept[-8:] == tuple(range(54, 62))


@pytest.mark.parametrize("layers", range(4, 63))
def test_exactly_as_many_layers_as_asked_for_stay(layers: int) -> None:
    spec = nano_12b()
    kept = depth_of(spec, workload_of(spec, LONG), layers)
    assert len(kept) == layers == len(set(kept))
    assert left(spec, kept).count("*") >= 4


def test_depths_shrink_block_by_block_above_the_floor() -> None:
    spec = nano_12b()
    found = depths(spec, workload_of(spec, LONG), 40)
    assert [len(kept) for kept in found] == list(range(62, 39, -2))
    assert all(set(less) < set(more) for more, less in itertools.pairwise(found))
    assert [left(spec, kept).count("*") for kept in found] == [6, 5, *[4] * 10]


def test_the_workload_decides_which_blocks_are_dear() -> None:
    spec = nano_12b()
    short = depth_of(spec, workload_of(spec, 1024), 60)
    assert left(spec, short).count("*") == 6


def test_the_floor_can_be_moved() -> None:
    spec = nano_12b()
    workload = workload_of(spec, LONG)
    assert attention_floor(spec) == 4
    assert attention_floor(published("Llama-3.1-8B")) == 1
    assert left(spec, depth_of(spec, workload, 50, keep_attention=6)).count("*") == 6
    assert left(spec, depth_of(spec, workload, 50, keep_attention=0)).count("*") == 0


def test_with_scores_the_least_important_layers_go() -> None:
    spec = tiny("MEM*-ME*")
    scores = random_scores(spec)
    worth = scores.importance["layer", None]
    worth[:] = [5, 1, 4, 0.5, 2, 6, 3, 0.1]
    assert depth_of(spec, WORKLOAD, 6, scores=scores, keep_attention=1) == (0, 2, 3, 4, 5, 6)
    assert depth_of(spec, WORKLOAD, 6, scores=scores, keep_attention=2) == (0, 2, 3, 5, 6, 7)
    assert [len(kept) for kept in depths(spec, WORKLOAD, 5, scores=scores, keep_attention=0)] == [8, 7, 6, 5]


def test_a_pattern_names_its_layers() -> None:
    spec = nano_12b()
    pattern = published("Nemotron-Nano-9B-v2").letters
    kept = match_pattern(spec, pattern)
    assert left(spec, kept) == pattern
    assert match_pattern(spec, spec.letters) == tuple(range(62))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_a_pattern_keeps_the_most_important_layers_that_spell_it(seed: int, length: int) -> None:
    spec = tiny("MEM*-ME*")
    scores = random_scores(spec, seed)
    worth = scores.importance["layer", None]
    pattern = left(spec, tuple(sorted(np.random.default_rng(seed).permutation(8)[:length].tolist())))
    kept = match_pattern(spec, pattern, scores)
    ways = [way for way in itertools.combinations(range(8), length) if left(spec, way) == pattern]
    assert kept in ways
    assert worth[list(kept)].sum() == pytest.approx(max(worth[list(way)].sum() for way in ways))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda spec: match_pattern(spec, "M**M"), "letter 4 of it, 'M', finds no layer"),
        (lambda spec: match_pattern(spec, "MX"), "letter 2 of it, 'X', finds no layer"),
        (lambda spec: match_pattern(spec, ""), "the pattern is empty"),
        (lambda spec: depth_of(spec, WORKLOAD, 9), "9 layers cannot be kept of 8"),
        (lambda spec: depth_of(spec, WORKLOAD, 1), "1 layers are fewer than the 2 attention layers to keep"),
        (lambda spec: attention_floor(spec, 3), "3 attention layers cannot be kept; the model has 2"),
    ],
)
def test_a_depth_that_cannot_be(ask: Any, told: str) -> None:
    with pytest.raises(MinitronError, match=told.replace("*", r"\*")):
        ask(tiny())


# --- the lattice


@pytest.mark.parametrize(
    "path", [*sorted(MODELS.glob("Nemotron*.json")), MODELS / "Llama-3.1-8B.json"], ids=lambda p: p.stem
)
def test_every_default_size_is_one_that_kernels_want_and_a_cut_can_reach(path: Path) -> None:
    spec = read_spec(path)
    widths = default_widths(spec)
    assert {"hidden_size"} < set(widths)
    for key, choices in widths.items():
        (axis,) = spec.keys[key]
        step, size = STEPS[axis], spec.sizes[axis]
        assert choices[0] == size
        assert list(choices) == sorted(set(choices), reverse=True)
        for choice in choices[1:]:
            assert isinstance(choice, int)
            assert size * (1 - step.most) <= choice < size
            assert choice % step.multiple == 0
        for choice in (choices[-1], choices[len(choices) // 2]):
            assert isinstance(choice, int)
            assert spec.resized({key: choice}).named_sizes[key] == choice


def test_steps_shrink_with_the_model() -> None:
    small = default_widths(tiny())
    assert small["hidden_size"] == (32, 24)
    assert small["mamba_num_heads"] == (8, 6)
    assert small["n_routed_experts"] == (6, 5, 4, 3)
    wider = default_widths(tiny(hidden_size=256, intermediate_size=1000, mamba_num_heads=30, n_groups=3))
    assert wider["hidden_size"] == (256, 240, 224, 208, 192)
    assert wider["mamba_num_heads"] == (30, 27, 24)
    assert set(wider["intermediate_size"]) == {1000, *range(512, 1000, 32)}


def test_a_lattice_by_hand() -> None:
    spec = nano_12b()
    assert parse_widths(spec, {"hidden_size": "4480, 5120,4480", "intermediate_size": "3x,15000,3.5x"}) == {
        "hidden_size": (5120, 4480),
        "intermediate_size": (Times(3.5), Times(3.0), 15000),
    }


def test_what_the_lattice_does_not_name_stays() -> None:
    spec, workload = nano_12b(), workload_of(nano_12b(), LONG)
    lattice = build_lattice(spec, workload, lattice={"hidden_size": "4480,4800"})
    assert set(lattice.widths) == {"hidden_size"}
    assert lattice.depths == (tuple(range(62)),)
    assert set(build_lattice(spec, workload, layers=56).widths) == set(default_widths(spec))
    counts = build_lattice(spec, workload, lattice={"num_hidden_layers": "54,56,54"})
    assert [len(kept) for kept in counts.depths] == [56, 54]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"lattice": {"hidden": "32"}}, "hidden is no width of this model; its widths are "),
        ({"lattice": {"vocab_size": "100"}}, "vocab_size cannot be cut in a nemotron_h model"),
        ({"lattice": {"hidden_size": "64"}}, "hidden_size = 64 cannot be reached by pruning from 32"),
        ({"lattice": {"hidden_size": "0"}}, "hidden_size = 0 cannot be reached"),
        ({"lattice": {"hidden_size": "0.5x"}}, "hidden_size: '0.5x' is no size"),
        ({"lattice": {"intermediate_size": "24,"}}, "intermediate_size: '' is no size"),
        ({"lattice": {"mamba_num_heads": "7"}}, "mamba_num_heads = 7 is no multiple of n_groups = 2"),
        (
            {"lattice": {"num_attention_heads": "3"}},
            "num_attention_heads = 3 is no multiple of num_key_value_heads = 2",
        ),
        ({"lattice": {"n_routed_experts": "1"}}, "n_routed_experts = 1 is fewer than the 2 experts"),
        ({"lattice": {"num_hidden_layers": "x"}}, "num_hidden_layers: 'x' is no list of numbers"),
        ({"layers": 6, "pattern": "M"}, "the depth is given twice"),
        ({"layers": 6, "lattice": {"num_hidden_layers": "5"}}, "the depth is given twice"),
        ({"pattern": "M", "keep_attention": 1}, "--keep-attention has no say"),
    ],
)
def test_a_lattice_that_cannot_be(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        build_lattice(tiny(), WORKLOAD, **asked)


# --- the search


def brute_force(lattice: Lattice, workload: Workload, budget: Budget) -> tuple[set[Any], set[Any]]:
    """(all architectures, those that fit), by building the config of each and counting it."""
    spec = lattice.spec
    searched, fitting = set(), set()
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
            searched.add(name)
            if footprint(model, workload, budget.workspace).total <= budget.available:
                fitting.add(name)
    return searched, fitting


def names(result: SearchResult, lattice: Lattice) -> list[Any]:
    return [
        (c.kept, tuple(sorted((key, c.sizes[key]) for key in lattice.widths if key in c.sizes)))
        for c in result.candidates
    ]


def test_the_search_finds_what_a_loop_finds() -> None:
    spec = tiny()
    lattice = Lattice(
        spec,
        depths(spec, WORKLOAD, 4, keep_attention=0),
        parse_widths(
            spec,
            {
                "hidden_size": "32,28,24",
                "intermediate_size": "1x,1.5x,2x,36,56",
                "mamba_num_heads": "4,6,8",
                "num_attention_heads": "1,2,3,4",
                "num_key_value_heads": "1,2",
                "n_routed_experts": "2,5",
                "head_dim": "8,12",
            },
        ),
    )
    whole = footprint(spec, WORKLOAD).total
    budget = Budget(round(whole * 0.6), workspace=1000)
    searched, fitting = brute_force(lattice, WORKLOAD, budget)
    assert 0 < len(fitting) < len(searched) < lattice.points
    result = search(lattice, WORKLOAD, budget, top=lattice.points)
    assert (result.searched, result.feasible) == (len(searched), len(fitting))
    found = names(result, lattice)
    assert len(set(found)) == len(found)
    assert set(found) == fitting
    for candidate in result.candidates[:: len(found) // 20]:
        model = spec.resized(candidate.sizes, candidate.kept)
        assert model.named_sizes == candidate.sizes
        assert model.letters == candidate.letters
        assert model.parameters().total == candidate.parameters == candidate.score
        assert footprint(model, WORKLOAD, 1000) == candidate.footprint
        assert candidate.fits
    kept_parameters = [candidate.parameters for candidate in result.candidates]
    assert kept_parameters == sorted(kept_parameters, reverse=True)


@pytest.mark.parametrize("length", [1, 7, 100, 10**6])
def test_blocks_cover_the_lattice_once_whatever_their_length(length: int) -> None:
    spec = tiny()
    lattice = Lattice(spec, (tuple(range(8)), tuple(range(1, 8)), tuple(range(2, 8))), default_widths(spec))
    blocks = [points.select(np.arange(prod(points.shape))) for points, _ in lattice.chunks(length)]
    assert all(len(block.depth) <= length for block in blocks)
    columns = [np.concatenate([block.depth for block in blocks])]
    columns += [np.concatenate([block.sizes[axis] for block in blocks]) for axis in blocks[0].sizes]
    seen = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(seen) == len(set(seen)) == lattice.points
    (whole, _) = next(lattice.chunks(10**9))
    whole = whole.select(np.arange(lattice.points))
    assert seen == list(zip(whole.depth.tolist(), *(size.tolist() for size in whole.sizes.values()), strict=True))


def test_the_best_are_the_first_of_all() -> None:
    spec = tiny()
    lattice = build_lattice(spec, WORKLOAD)
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
    assert "2.000 KiB too much, of which weights takes the most" in str(caught.value)
    long = Workload(10**6, 64)
    with pytest.raises(MinitronError, match="of which kv cache takes the most"):
        search(build_lattice(spec, long), long, Budget(least))


def test_a_lattice_of_nothing_but_contradictions() -> None:
    spec = tiny()
    lattice = build_lattice(spec, WORKLOAD, lattice={"intermediate_size": "5x"})
    with pytest.raises(MinitronError, match="no point of the lattice"):
        search(lattice, WORKLOAD, AMPLE)


def test_millions_of_candidates_in_bounded_memory() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    workload = workload_of(spec, LONG)
    lattice = build_lattice(spec, workload)
    assert lattice.points > 5_000_000
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
        *("gpu", "workload", "budget", "parent", "candidates", "chosen", "searched", "feasible", "ranking"),
    ]
    assert document["gpu"] == "A10G"
    assert document["workload"]["context"] == LONG
    assert document["parent"]["footprint"]["total"] == sum(
        document["parent"]["footprint"][term]
        for term in ("weights", "kv_cache", "conv_state", "ssm_state", "workspace")
    )
    for candidate in [document["parent"], *document["candidates"]]:
        assert {"sizes", "layers", "parameters", "footprint", "fits", "score"} <= set(candidate)
        assert all(isinstance(value, int) for value in candidate["footprint"].values())
        assert candidate["sizes"]["num_hidden_layers"] == len(candidate["layers"]) == len(candidate["kept_layers"])
        assert candidate["fits"] == (candidate["footprint"]["total"] <= document["budget"]["available"])
    assert document["chosen"] == 0
    assert "no scores given" in document["ranking"]


# --- scores


def slow_share(scores: Scores, spec: ModelSpec, sizes: dict[str, int], kept: tuple[int, ...], axis: str) -> float:
    """The mean over layers of the share of squared scores that minitron.selection keeps: what Shares says in one go."""
    keep = choose(spec, scores, sizes, tuple(range(len(spec.layers))))
    shares = []
    for (name, layer), values in scores.importance.items():
        energy = values**2
        if name == axis:
            chosen = keep.get((axis, layer))
            if chosen is None:
                shares.append(1.0)
            elif energy.ndim == 2:
                shares.append(sum(row[one].sum() for row, one in zip(energy, chosen, strict=True)) / energy.sum())
            else:
                shares.append(energy[chosen].sum() / energy.sum())
        elif name == "mamba_channel" and axis == "mamba_head*mamba_head_dim":
            heads = keep.get(("mamba_head", layer), np.arange(energy.shape[0]))
            channels = keep.get(("mamba_head_dim", layer), np.arange(energy.shape[1]))
            shares.append(energy[np.ix_(heads, channels)].sum() / energy.sum())
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(3))
def test_kept_shares_are_those_of_the_indices_that_are_chosen(seed: int) -> None:
    spec = tiny("MEM*-ME*")
    scores = random_scores(spec, seed)
    sizes = {
        "hidden_size": "20",
        "intermediate_size": "30",
        "mamba_num_heads": "4",
        "mamba_head_dim": "6",
        "num_attention_heads": "2",
        "n_routed_experts": "4",
        "moe_intermediate_size": "10",
        "moe_shared_expert_intermediate_size": "25",
    }
    lattice = Lattice(spec, (tuple(range(8)),), parse_widths(spec, sizes))
    points, _ = next(lattice.chunks())
    shares = Shares(lattice, scores)
    by_hand = {key: int(text) for key, text in sizes.items()}
    for axis in ("hidden", "ffn", "query_head", "expert", "expert_ffn", "shared_ffn"):
        assert shares.effective(axis, points).item() == pytest.approx(
            spec.sizes[axis] * slow_share(scores, spec, by_hand, lattice.depths[0], axis)
        )
    product = shares.effective("mamba_head", points).item() * shares.effective("mamba_head_dim", points).item()
    inner = spec.sizes["mamba_head"] * spec.sizes["mamba_head_dim"]
    # The mean over layers is taken of either factor's table, so the product is that of the joint share.
    joint = slow_share(scores, spec, by_hand, lattice.depths[0], "mamba_head*mamba_head_dim")
    assert product == pytest.approx(inner * joint)


def test_kv_heads_take_their_query_heads_along() -> None:
    spec = tiny("M*")
    scores = random_scores(spec)
    lattice = Lattice(spec, ((0, 1),), parse_widths(spec, {"num_key_value_heads": "1", "num_attention_heads": "2"}))
    points, _ = next(lattice.chunks())
    shares = Shares(lattice, scores)
    groups = (scores.importance["query_head", 1] ** 2).reshape(2, 2).sum(1)
    assert shares.effective("kv_head", points).item() == pytest.approx(2 * groups.max() / groups.sum())
    assert shares.effective("query_head", points).item() == pytest.approx(4 * groups.max() / groups.sum())


def test_equal_importance_makes_effective_parameters_parameters() -> None:
    spec = tiny()
    scores = random_scores(spec)
    flat = Scores({key: np.ones_like(values) for key, values in scores.importance.items()}, {}, spec.fingerprint, "")
    lattice = build_lattice(spec, WORKLOAD, scores=flat)
    result = search(lattice, WORKLOAD, AMPLE, scores=flat, top=lattice.points)
    for candidate in result.candidates[::50]:
        assert candidate.score == pytest.approx(candidate.parameters)


def test_scores_of_zero_count_as_equal() -> None:
    spec = tiny()
    scores = random_scores(spec)
    dead = Scores({key: np.zeros_like(values) for key, values in scores.importance.items()}, {}, spec.fingerprint, "")
    result = search(build_lattice(spec, WORKLOAD, scores=dead), WORKLOAD, AMPLE, scores=dead)
    assert [candidate.score for candidate in result.candidates] == [
        pytest.approx(candidate.parameters) for candidate in result.candidates
    ]


def test_scores_decide_which_axis_gives() -> None:
    """Where only half of the MLP's channels matter and all of hidden does, the MLP is what goes."""
    spec = tiny("M-M-M-", intermediate_size=64)
    scores = random_scores(tiny("M-M-M-", intermediate_size=64))
    flat: dict[Any, Any] = {key: np.ones_like(values) for key, values in scores.importance.items()}
    asked = {"hidden_size": "32,24", "intermediate_size": "64,32"}
    lattice = build_lattice(spec, WORKLOAD, lattice=asked)
    smaller = [
        footprint(spec.resized({key: size}), WORKLOAD).total
        for key, size in (("hidden_size", 24), ("intermediate_size", 32))
    ]
    budget = Budget(max(smaller))
    for axis, size, expected in (("ffn", 64, (32, 32)), ("hidden", 32, (24, 64))):
        half = np.arange(size) < size * 3 // 4 if axis == "hidden" else np.arange(size) < size // 2
        uneven = flat | {key: half.astype(float) for key in flat if key[0] == axis}
        given = Scores(uneven, {}, spec.fingerprint, "")
        best = search(lattice, WORKLOAD, budget, scores=given).best
        assert (best.sizes["hidden_size"], best.sizes["intermediate_size"]) == expected


def test_scores_of_another_model_are_refused() -> None:
    scores = random_scores(tiny())
    other = tiny(hidden_size=40)
    with pytest.raises(MinitronError, match="another config"):
        search(build_lattice(other, WORKLOAD), WORKLOAD, AMPLE, scores=scores)
