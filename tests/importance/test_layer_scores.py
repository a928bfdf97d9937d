"""Scores of layers: against whole models with layers taken out."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_importance import blocks_of, loaded, quick, record, slow_removal

from importance.score import depth
from importance.score.depth import _increasing, removal_scores
from minitron.model.layer_by_layer import Passed


@pytest.mark.parametrize(("name", "dropped"), [("tiny_hybrid", 3), ("tiny_hybrid", 1), ("tiny_llama", 3)])
def test_layers_removed_one_by_one(name: str, dropped: int, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name))
    blocks = blocks_of(3)
    scores = quick(model, spec, blocks, layers="iterative", max_dropped=dropped)
    expected = slow_removal(model, blocks, dropped)
    found = scores.importance["layer", None]
    assert np.argsort(found).tolist() == [layer for layer, _ in expected]
    floor = 0.0
    for layer, divergence in expected:
        floor = max(floor, divergence)
        assert found[layer] == pytest.approx(floor, rel=1e-3)
    assert scores.settings["max_dropped"] == dropped
    assert scores.settings["layer_samples"] == 3


def test_a_layer_that_does_nothing_goes_first(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    for layer in (4, 7):
        out = {4: "down_proj", 7: "o_proj"}[layer]
        model.get_submodule(f"model.layers.{layer}.mixer.{out}").weight.zero_()
    blocks = blocks_of(2)
    for method, options in (("iterative", {"max_dropped": 2}), ("fast", {})):
        found = quick(model, spec, blocks, layers=method, **options).importance["layer", None]
        assert set(np.argsort(found)[:2].tolist()) == {4, 7}
        assert found[[4, 7]] == pytest.approx(0, abs=1e-6)
        assert found.min() >= 0


def test_layers_are_judged_on_some_of_the_samples(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of(5)
    some = quick(model, spec, blocks, layers="iterative", layer_samples=2)
    assert some.settings["layer_samples"] == 2
    expected, _ = removal_scores(model, spec, blocks[[0, 4]])
    np.testing.assert_allclose(some.importance["layer", None], expected, rtol=1e-4)


def test_half_of_the_layers_are_dropped_unless_told_and_never_all(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of(2)
    assert quick(model, spec, blocks, layers="iterative").settings["max_dropped"] == 2
    assert quick(model, spec, blocks, layers="iterative", max_dropped=99).settings["max_dropped"] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_llama"])
def test_what_is_given_up_or_kept_changes_no_bit(
    name: str, dtype: torch.dtype, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = loaded(request.getfixturevalue(name))
    model.to(dtype)
    # Layers that differ, so that some can be given up.
    for layer in range(0, len(spec.layers), 2):
        for parameter in model.get_submodule(f"model.layers.{layer}").parameters():
            parameter.mul_(1.5)
    runs: list[int] = []
    run = Passed.run
    monkeypatch.setattr(Passed, "run", lambda *arguments: runs.append(1) or run(*arguments))
    blocks, count, dropped = blocks_of(8), len(spec.layers), len(spec.layers) - 1
    found, passes = {}, {}
    for rounding, kept in itertools.product((depth.ROUNDING, math.inf), (depth.KEPT, 0)):
        monkeypatch.setattr(depth, "ROUNDING", rounding)
        monkeypatch.setattr(depth, "KEPT", kept)
        runs.clear()
        found[rounding, kept], _ = removal_scores(model, spec, blocks, max_dropped=dropped)
        passes[rounding, kept] = len(runs)
    every = found.pop((math.inf, 0))
    for scores in found.values():
        assert (scores == every).all()
    of_all = 8 * sum(left * (left + 1) // 2 for left in range(count, count - dropped, -1))
    assert passes[math.inf, 0] >= of_all - 8 * count
    assert passes[1e-5, 2**28] < 0.7 * of_all
    assert passes[1e-5, 2**28] < min(passes[math.inf, 2**28], passes[1e-5, 0])


@given(st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_scores_keep_the_order_of_removal(divergences: list[float], random: Any) -> None:
    layers = list(range(len(divergences)))
    random.shuffle(layers)
    found = _increasing(list(zip(layers, divergences, strict=True)))
    # Sixteen bits of a float would lose the order; thirty-two must not.
    assert np.argsort(found.astype(np.float32), kind="stable").tolist() == layers
    highest = np.maximum.accumulate(divergences)
    np.testing.assert_allclose(found[layers], highest, rtol=2e-5, atol=2e-8)


def test_block_influence(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    found = quick(model, spec, blocks, layers="fast").importance["layer", None]
    names = [f"model.layers.{layer}" for layer in range(8)]
    seen = record(model, blocks, *names)
    for layer, name in enumerate(names):
        before, after = seen[name][0].reshape(-1, 32), seen[name][-1].reshape(-1, 32)
        cosines = [
            one @ two / np.linalg.norm(one) / np.linalg.norm(two) for one, two in zip(before, after, strict=True)
        ]
        assert found[layer] == pytest.approx(1 - np.mean(cosines), rel=1e-5, abs=1e-7)
