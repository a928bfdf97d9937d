"""Which layers stay: by blocks, by scores, by a pattern."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_models import LONG, WORKLOAD, left, nano_12b, published, random_scores, tiny

from minitron.errors import MinitronError
from minitron.memory.workload import workload_of
from minitron.search.depth import attention_floor, depth_of, depths, match_pattern


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
        (lambda spec: match_pattern(spec, "M**M"), "letter 4, 'M', finds no layer"),
        (lambda spec: match_pattern(spec, "MX"), "letter 2, 'X', finds no layer"),
        (lambda spec: match_pattern(spec, ""), "the pattern is empty"),
        (lambda spec: depth_of(spec, WORKLOAD, 9), "9 layers cannot be kept of 8"),
        (lambda spec: depth_of(spec, WORKLOAD, 1), "1 layers are fewer than the 2 attention layers to keep"),
        (lambda spec: attention_floor(spec, 3), "3 attention layers cannot be kept; the model has 2"),
    ],
)
def test_a_depth_that_cannot_be(ask: Any, told: str) -> None:
    with pytest.raises(MinitronError, match=told.replace("*", r"\*")):
        ask(tiny())
