"""Effective parameters against the indices that are really chosen."""

from typing import Any

import numpy as np
import pytest
from planning_models import AMPLE, WORKLOAD, random_scores, tiny

from minitron.cut.scores import Scores
from minitron.cut.selection import choose
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.model.spec import ModelSpec
from minitron.search.effective_parameters import EffectiveParameters
from minitron.search.lattice import Lattice, parse_widths
from minitron.search.search import build_lattice, search


def slow_share(scores: Scores, spec: ModelSpec, sizes: dict[str, int], kept: tuple[int, ...], axis: str) -> float:
    """The mean over layers of the share of squared scores that minitron.cut.selection keeps: what EffectiveParameters
    says in one go."""
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
        "moe_intermediate_size": "12",
        "moe_shared_expert_intermediate_size": "25",
    }
    lattice = Lattice(spec, (tuple(range(8)),), parse_widths(spec, sizes))
    points, _ = next(lattice.chunks())
    shares = EffectiveParameters(lattice, scores)
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
    shares = EffectiveParameters(lattice, scores)
    groups = (scores.importance["query_head", 1] ** 2).reshape(2, 2).sum(1)
    assert shares.effective("kv_head", points).item() == pytest.approx(2 * groups.max() / groups.sum())
    assert shares.effective("query_head", points).item() == pytest.approx(4 * groups.max() / groups.sum())


def test_equal_importance_makes_effective_parameters_parameters() -> None:
    spec = tiny("M-M*-")
    scores = random_scores(spec)
    flat = Scores({key: np.ones_like(values) for key, values in scores.importance.items()}, {}, spec.fingerprint, "")
    lattice = build_lattice(spec, WORKLOAD, scores=flat)
    result = search(lattice, WORKLOAD, AMPLE, scores=flat, top=lattice.points)
    for candidate in result.candidates[::50]:
        assert candidate.score == pytest.approx(candidate.parameters)


def by_use(parent: ModelSpec, left: ModelSpec) -> float:
    """The parameters of `left`, tensor by tensor, those of the mixture of experts by the share of tokens that use them
    in the parent, of a mean of 1 there."""
    share = parent.config["num_experts_per_tok"] / parent.config["n_routed_experts"]

    def counted(spec: ModelSpec) -> tuple[float, float, float]:
        plain = mixture = used = 0.0
        for tensor in spec.expected():
            numbers = float(np.prod(tensor.shape))
            if ".experts." in tensor.name:
                mixture, used = mixture + numbers, used + share * numbers
            elif ".gate." in tensor.name or ".shared_experts." in tensor.name:
                mixture, used = mixture + numbers, used + numbers
            else:
                plain += numbers
        return plain, mixture, used

    _, mixture, used = counted(parent)
    plain, _, still_used = counted(left)
    return plain + still_used * mixture / used


def test_what_every_token_uses_counts_for_more_than_what_some_use() -> None:
    spec = tiny()
    scores = random_scores(spec)
    flat = Scores({key: np.ones_like(values) for key, values in scores.importance.items()}, {}, spec.fingerprint, "")
    lattice = build_lattice(spec, WORKLOAD, scores=flat)
    result = search(lattice, WORKLOAD, AMPLE, scores=flat, top=lattice.points)
    assert result.parent.parameters == pytest.approx(by_use(spec, spec))
    for candidate in result.candidates[::50]:
        assert candidate.score == pytest.approx(by_use(spec, candidate.left(spec)))


def test_a_shared_expert_stays_longer_than_routed_ones() -> None:
    """Two cuts take the same bytes, of equal importance: of what every token uses, and of what some use."""
    spec = tiny(moe_shared_expert_intermediate_size=64)
    scores = random_scores(spec)
    flat = Scores({key: np.ones_like(values) for key, values in scores.importance.items()}, {}, spec.fingerprint, "")
    wide = spec.named_sizes
    experts, width, shared = (
        wide[key] for key in ("n_routed_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size")
    )
    asked = {
        "moe_intermediate_size": f"{width},{width - 4}",
        "moe_shared_expert_intermediate_size": f"{shared},{shared - 4 * experts}",
    }
    lattice = build_lattice(spec, WORKLOAD, lattice=asked)
    cut = footprint(spec.resized({"moe_intermediate_size": width - 4}), WORKLOAD).total
    assert cut == footprint(spec.resized({"moe_shared_expert_intermediate_size": shared - 4 * experts}), WORKLOAD).total
    best = search(lattice, WORKLOAD, Budget(cut), scores=flat).best
    assert best.sizes["moe_shared_expert_intermediate_size"] == shared
    assert best.sizes["moe_intermediate_size"] == width - 4


def test_scores_of_zero_count_as_equal() -> None:
    spec = tiny("M-M*-")
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
