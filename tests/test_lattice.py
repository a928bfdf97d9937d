"""Which architectures are looked at."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_models import LONG, MODELS, WORKLOAD, nano_12b, tiny

from minitron.errors import MinitronError
from minitron.lattice import STEPS, Lattice, Times, default_widths, parse_widths
from minitron.memory import workload_of
from minitron.search import build_lattice
from minitron.spec import read_spec


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
