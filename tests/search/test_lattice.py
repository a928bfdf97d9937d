"""Which architectures are looked at."""

from collections import Counter
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_models import LONG, MODELS, WORKLOAD, left, nano_12b, published, random_scores, tiny

from minitron.errors import MinitronError
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.depth import LayerLimits
from minitron.search.effective_parameters import EffectiveParameters
from minitron.search.lattice import Lattice, LatticeOptions, Times, default_sizes, default_widths, parse_widths
from minitron.search.search import build_lattice
from minitron.search.thinning import thinned


@pytest.mark.parametrize(
    "path", [*sorted(MODELS.glob("Nemotron*.json")), MODELS / "Llama-3.1-8B.json"], ids=lambda p: p.stem
)
def test_every_default_size_is_one_that_kernels_want_and_a_cut_can_reach(path: Path) -> None:
    spec = read_spec(path)
    widths = default_widths(spec)
    assert {"hidden_size"} < set(widths)
    for key, choices in widths.items():
        axis = spec.keys[key][0]
        step, size = spec.axis(axis).step, spec.sizes[axis]
        assert choices[0] == size
        assert list(choices) == sorted(set(choices), reverse=True)
        for choice in choices[1:]:
            assert isinstance(choice, int)
            assert size * (1 - step.most) <= choice < size
            # Quarters of 128 are what attention kernels and engines' caches take; no step is finer.
            assert choice % (32 if key in ("head_dim", "ssm_state_size") else step.multiple) == 0
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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Nemotron-Nano-12B-v2", {"head_dim": (128, 96, 64), "ssm_state_size": (128, 96, 64)}),
        ("Nemotron-3-Super-120B-A12B", {"moe_latent_size": (1024, 768, 512)}),
        ("Bamba-9B-v1", {"mamba_d_state": (128, 96, 64)}),
        # No choice of directions keeps rotary pairs, and the first Mamba's states have no scores.
        ("Llama-3.1-8B", {"head_dim": None}),
        ("Jamba-v0.1", {"mamba_d_state": None, "head_dim": (128, 96, 64)}),
    ],
)
def test_axes_that_cost_little_are_searched_in_quarters_wherever_they_have_scores(
    name: str, found: dict[str, tuple[int, ...] | None]
) -> None:
    spec = published(name)
    widths = build_lattice(spec, workload_of(spec, 4096)).widths
    assert {key: widths.get(key) for key in found} == found


def test_an_engine_whose_kernels_want_the_states_whole_keeps_them() -> None:
    spec = nano_12b()
    workload = workload_of(spec, 4096, engine=Engine("llama.cpp"))
    assert "ssm_state_size" not in build_lattice(spec, workload).widths
    asked = LatticeOptions(most={"ssm_state": 0.5})
    assert build_lattice(spec, workload, options=asked).widths["ssm_state_size"] == (128, 96, 64)
    by_hand = build_lattice(spec, workload, lattice={"ssm_state_size": "64"})
    assert by_hand.widths == {"ssm_state_size": (64,)}


def test_a_lattice_too_large_to_look_through_is_thinned() -> None:
    widths = {"a": tuple(range(33, 0, -1)), "b": tuple(range(22, 0, -1)), "c": (8, 7, 6), "d": tuple(range(99, 0, -1))}
    assert thinned(widths, 2, most=2 * 33 * 22 * 3 * 99) == widths
    for most in (100_000, 10_000, 1_000):
        found = thinned(widths, 2, {"c"}, most=most)
        assert 2 * prod(len(sizes) for sizes in found.values()) <= most
        assert found["c"] == (8, 7, 6)
        for key, sizes in found.items():
            assert sizes[0] == widths[key][0] and sizes[-1] == widths[key][-1]
            assert list(sizes) == sorted(set(sizes) & set(widths[key]), reverse=True)
    # What was asked for stays, and no axis is left without a size between its ends.
    assert thinned(widths, 2, {"b", "d"}, most=1)["d"] == widths["d"]
    assert {len(sizes) for sizes in thinned(widths, 2, most=1).values()} == {3}


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
        ({"lattice": {"hidden": "32"}}, "hidden is not a width of this model; its widths are "),
        ({"lattice": {"vocab_size": "100"}}, "vocab_size cannot be cut in a nemotron_h model"),
        ({"lattice": {"hidden_size": "64"}}, "hidden_size = 64 cannot be reached by pruning from 32"),
        ({"lattice": {"hidden_size": "0"}}, "hidden_size = 0 cannot be reached"),
        ({"lattice": {"hidden_size": "0.5x"}}, "hidden_size: '0.5x' is not a size"),
        ({"lattice": {"intermediate_size": "24,"}}, "intermediate_size: '' is not a size"),
        ({"lattice": {"mamba_num_heads": "7"}}, "mamba_num_heads = 7 is not a multiple of n_groups = 2"),
        (
            {"lattice": {"num_attention_heads": "3"}},
            "num_attention_heads = 3 is not a multiple of num_key_value_heads = 2",
        ),
        (
            {"lattice": {"n_routed_experts": "1"}},
            "n_routed_experts = 1 is less than the 2 experts of num_experts_per_tok",
        ),
        ({"lattice": {"num_hidden_layers": "x"}}, "num_hidden_layers: 'x' is not a list of numbers"),
        ({"layers": 6, "pattern": "M"}, "the depth is given twice"),
        ({"layers": 6, "lattice": {"num_hidden_layers": "5"}}, "the depth is given twice"),
        ({"pattern": "M", "keep_attention": 1}, "--pattern conflicts with --keep-attention"),
    ],
)
def test_a_lattice_that_cannot_be(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        build_lattice(tiny(), WORKLOAD, **asked)


def test_every_axis_can_be_searched_and_the_vocabulary_is_left_alone() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    names = ["hidden", "query_head", "kv_head", "head_dim", "mamba_head", "mamba_head_dim", "ssm_state"]
    names += ["expert", "active_expert", "expert_ffn", "shared_ffn", "latent"]
    options = LatticeOptions(most=dict.fromkeys(names, 0.5))
    widths = default_widths(spec, options)
    assert set(widths) == {spec.key(axis) for axis in spec.sizes} - {"vocab_size", "conv_kernel", "n_groups"}
    for key, choices in widths.items():
        size = spec.named_sizes[key]
        assert choices[0] == size
        assert size / 2 <= min(choices) < size * 0.63
    dense = published("Nemotron-Nano-12B-v2")
    stay = {"hidden_size", "mamba_num_heads", "head_dim", "ssm_state_size"}
    assert set(default_widths(dense, LatticeOptions(most={"ffn": 0.0}))) == stay


def test_what_a_person_asks_of_an_axis() -> None:
    spec = nano_12b()
    asked = LatticeOptions(
        multiples={"ffn": 1024},
        most={"intermediate_size": 0.2, "hidden_size": 0.05},
        leave=["mamba_head", "head_dim", "ssm_state"],
    )
    assert default_widths(spec, asked) == {
        "hidden_size": (5120, 4992, 4864),
        "intermediate_size": (20480, 19456, 18432, 17408, 16384),
    }
    # A multiple is a floor: groups stay whole whatever is asked for.
    heads = default_widths(spec, LatticeOptions(multiples={"mamba_num_heads": 12}))["mamba_num_heads"]
    assert heads == (128, 120, 96)
    # 30 % of 10 channels leave 7, though 10 x (1 - 0.3) is a hair above it in floating point.
    ten = tiny(mamba_head_dim=10)
    assert default_sizes(
        ten, "mamba_head_dim", LatticeOptions(multiples={"mamba_head_dim": 1}, most={"mamba_head_dim": 0.7})
    ) == tuple(range(10, 2, -1))


def test_kv_heads_go_in_whole_groups() -> None:
    spec, workload = nano_12b(), workload_of(nano_12b(), LONG)
    lattice = build_lattice(
        spec, workload, layers=62, lattice={"hidden_size": "5120"}, options=LatticeOptions(most={"kv_head": 0.5})
    )
    points, allowed = next(lattice.chunks())
    points = points.select(np.flatnonzero(allowed))
    assert list(zip(points.sizes["kv_head"].tolist(), points.sizes["query_head"].tolist(), strict=True)) == [
        (8, 40),
        (7, 35),
        (6, 30),
        (5, 25),
        (4, 20),
    ]
    assert lattice.values("query_head") == (20, 25, 30, 35, 40)
    # Named beside them, query heads take every number that divides among the groups and no more than these had.
    both = LatticeOptions(most={"kv_head": 0.5, "query_head": 0.5}, leave=["hidden", "ffn", "mamba_head"])
    points, allowed = next(build_lattice(spec, workload, layers=62, options=both).chunks())
    points = points.select(np.flatnonzero(allowed))
    found = set(zip(points.sizes["kv_head"].tolist(), points.sizes["query_head"].tolist(), strict=True))
    assert found == {(kv, kv * inside) for kv in range(4, 9) for inside in range(1, 6) if kv * inside >= 20}


def test_query_heads_that_follow_count_with_the_share_of_their_kv_heads() -> None:
    spec = tiny("M*")
    scores = random_scores(spec)
    lattice = build_lattice(spec, WORKLOAD, layers=2, scores=scores, options=LatticeOptions(most={"kv_head": 0.5}))
    points, _ = next(lattice.chunks())
    shares = EffectiveParameters(lattice, scores)
    groups = (scores.importance["query_head", 1] ** 2).reshape(2, 2).sum(1)
    kept = [1.0, groups.max() / groups.sum()]
    for axis, size in (("kv_head", 2), ("query_head", 4)):
        assert sorted(set(shares.effective(axis, points).ravel()), reverse=True) == pytest.approx(
            [size * share for share in kept]
        )


def test_a_llamas_hidden_stays_a_multiple_of_its_heads_when_both_are_cut() -> None:
    spec = read_spec(MODELS / "Llama-3.1-8B.json")
    options = LatticeOptions(most={"query_head": 0.25, "hidden": 0.25}, leave=["ffn", "layer"])
    lattice = build_lattice(spec, workload_of(spec, 4096), options=options)
    points, allowed = next(lattice.chunks())
    points = points.select(np.flatnonzero(allowed))
    pairs = list(zip(points.sizes["hidden"].tolist(), points.sizes["query_head"].tolist(), strict=True))
    assert len(pairs) > 10
    assert {heads for _, heads in pairs} == {32, 24}
    for hidden, heads in pairs:
        assert spec.resized({"hidden_size": hidden, "num_attention_heads": heads}).sizes["hidden"] == hidden


def depths_of(spec: ModelSpec, **more: Any) -> list[Counter[str]]:
    lattice = build_lattice(spec, workload_of(spec, LONG), **more)
    return [Counter(left(spec, kept)) for kept in lattice.depths]


def test_which_kinds_of_layers_may_go() -> None:
    spec = nano_12b()
    for only in (["mamba", "mlp"], ["M", "-"]):
        found = depths_of(spec, options=LatticeOptions(layers=LayerLimits(may_go=only)))
        assert len(found) == 6
        assert all(counts["*"] == 6 for counts in found)
    mlp = depths_of(spec, layers=50, options=LatticeOptions(layers=LayerLimits(may_go=["mlp"])))
    assert mlp == [{"M": 28, "*": 6, "-": 16}]
    with_scores = depths_of(
        spec, layers=50, scores=random_scores(spec), options=LatticeOptions(layers=LayerLimits(may_go=["mamba"]))
    )
    assert with_scores == [{"M": 16, "*": 6, "-": 28}]


def test_how_many_of_each_kind_stay() -> None:
    spec = nano_12b()
    limits = LayerLimits(at_least={"mamba": 27, "attention": 2}, at_most={"-": 26})
    found = depths_of(spec, options=LatticeOptions(layers=limits))
    assert all(counts["M"] >= 27 and counts["*"] >= 2 and counts["-"] <= 26 for counts in found)
    assert [sum(counts.values()) for counts in found] == sorted(
        {sum(counts.values()) for counts in found}, reverse=True
    )
    exact = {"mamba": 27, "attention": 4, "mlp": 25}
    nano_9b = depths_of(spec, layers=56, options=LatticeOptions(layers=LayerLimits(at_least=exact, at_most=exact)))
    assert nano_9b == [{"M": 27, "*": 4, "-": 25}]
    assert depths_of(spec, options=LatticeOptions(leave=["depth"])) == [Counter(spec.letters)]
    assert [sum(c.values()) for c in depths_of(spec, options=LatticeOptions(most={"layer": 0.04}))] == [62, 60]
    in_fours = depths_of(spec, options=LatticeOptions(multiples={"num_hidden_layers": 4}))
    assert [sum(c.values()) for c in in_fours] == [62, 60, 56, 52]


def test_every_mix_of_layers_is_there_once() -> None:
    spec = tiny("MEM*-ME*")
    options = LatticeOptions(most={"layer": 0.5}, every_mix=True, layers=LayerLimits(at_most={"mlp": 0}))
    lattice = build_lattice(spec, WORKLOAD, options=options, keep_attention=1)
    found = [tuple(Counter(left(spec, kept))[letter] for letter in "ME*-") for kept in lattice.depths]
    ranges = product(range(4), range(3), range(1, 3), [0])
    assert sorted(found) == sorted(counts for counts in ranges if sum(counts) >= 4)
    assert [sum(counts) for counts in found] == sorted(map(sum, found), reverse=True)


@pytest.mark.parametrize(
    ("options", "asked", "told"),
    [
        (
            {"most": {"width": 0.5}},
            {},
            "width is not an axis of this model; its axes are layer, hidden, ffn, query_head",
        ),
        ({"leave": ["vocabulary"]}, {}, "vocabulary is not an axis of this model"),
        ({"multiples": {"vocab": 64}}, {}, "vocab cannot be cut in a nemotron_h model"),
        ({"multiples": {"ffn": 0}}, {}, "ffn cannot be a multiple of 0"),
        ({"most": {"ffn": 1.0}}, {}, "ffn: a share of 1 cannot be pruned"),
        ({"most": {"ffn": 0.5}, "leave": ["intermediate_size"]}, {}, "intermediate_size is both excluded"),
        ({"most": {"ffn": 0.5, "intermediate_size": 0.4}}, {}, "intermediate_size is given twice"),
        ({"most": {"ffn": 0.5}}, {"lattice": {"intermediate_size": "40"}}, "--lattice intermediate_size conflicts"),
        ({"leave": ["ffn"]}, {"lattice": {"intermediate_size": "40"}}, "--lattice intermediate_size conflicts"),
        ({"most": {"layer": 0.5}}, {"layers": 6}, "the depth is fixed by"),
        ({"every_mix": True}, {"layers": 6}, "--every-mix conflicts"),
        ({"layers": LayerLimits(["mlp"])}, {"pattern": "M"}, "--pattern conflicts with --may-go"),
        (
            {"layers": LayerLimits(["dense"])},
            {},
            r"dense is not a kind of layer of this model; its kinds are mamba \(M\), ",
        ),
        ({"layers": LayerLimits(at_least={"M": 9})}, {}, "9 mamba layers cannot be kept; the model has 3"),
        ({"layers": LayerLimits(at_most={"M": -1})}, {}, "-1 mamba layers cannot be kept"),
        ({"layers": LayerLimits(at_least={"M": 3}, at_most={"mamba": 2})}, {}, "at most 2 of the model's 3 mamba"),
        ({"layers": LayerLimits(["moe"], at_most={"mamba": 2})}, {}, "but at least 3 must"),
        ({"layers": LayerLimits(at_most={"*": 1})}, {"keep_attention": 2}, "at most 1 attention layers are to stay"),
        ({"layers": LayerLimits(at_least={"*": 1})}, {"keep_attention": 2}, "attention layers is given twice"),
        ({"layers": LayerLimits(at_most=dict.fromkeys("ME*-", 0))}, {}, "leave no layer at all"),
        ({"layers": LayerLimits(at_least={"M": 3})}, {"layers": 2}, "2 layers are fewer than the limits allow"),
        ({"layers": LayerLimits(at_most={"M": 1})}, {"layers": 7}, "7 layers are more than the 6 that the limits"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], asked: dict[str, Any], told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        build_lattice(tiny(), WORKLOAD, options=LatticeOptions(**options), **asked)


@pytest.mark.parametrize("length", [1, 7, 100, 10**6])
def test_blocks_cover_the_lattice_once_whatever_their_length(length: int) -> None:
    spec = tiny()
    widths = {key: sizes[:2] for key, sizes in default_widths(spec).items()}
    lattice = Lattice(spec, (tuple(range(8)), tuple(range(1, 8)), tuple(range(2, 8))), widths)
    assert lattice.points > 200
    blocks = [points.select(np.arange(prod(points.shape))) for points, _ in lattice.chunks(length)]
    assert all(len(block.depth) <= length for block in blocks)
    columns = [np.concatenate([block.depth for block in blocks])]
    columns += [np.concatenate([block.sizes[axis] for block in blocks]) for axis in blocks[0].sizes]
    seen = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(seen) == len(set(seen)) == lattice.points
    (whole, _) = next(lattice.chunks(10**9))
    whole = whole.select(np.arange(lattice.points))
    assert seen == list(zip(whole.depth.tolist(), *(size.tolist() for size in whole.sizes.values()), strict=True))
