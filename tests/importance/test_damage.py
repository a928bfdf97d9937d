"""The damage model: curves, least squares against brute force, planted losses found again, and never less for more."""

import itertools

import numpy as np
import pytest
from family_sizes.base import LLAMA_SIZES
from planning_models import WORKLOAD, nano_12b, random_scores, tiny

from importance.search.damage import Coordinates, Curve, DamageModel, Form, Setting, measure_curves
from importance.search.least_squares import nonnegative, ranks, spearman
from minitron.model.spec import spec_of
from minitron.search.depth import depths
from minitron.search.lattice import Lattice, Points, parse_widths
from minitron.search.search import build_lattice, one_a_layout

AXES = {
    "hidden_size": "32,28,24,20",
    "intermediate_size": "1x,1.5x,40,56",
    "mamba_num_heads": "4,6,8",
    "num_attention_heads": "1,2,4",
    "num_key_value_heads": "1,2",
    "n_routed_experts": "2,3,4,5,6",
    "moe_intermediate_size": "12,16,20,24",
}


def lattice_of(**axes: str) -> Lattice:
    spec = tiny()
    return Lattice(spec, depths(spec, WORKLOAD, 5, keep_attention=0), parse_widths(spec, axes or AXES))


def every_point(lattice: Lattice) -> Points:
    ((points, allowed),) = lattice.chunks(10**7)
    return points.select(np.flatnonzero(allowed))


def planted(coordinates: Coordinates, points: Points, seed: int = 0) -> np.ndarray:
    """Losses that are a quadratic form of perturbations, each of its own power of the share cut."""
    rng = np.random.default_rng(seed)
    names = coordinates.names
    damages = np.stack(
        [
            rng.uniform(0.05, 1.5)
            * points.spread(coordinates.cut(name, points)) ** rng.uniform(1.2, 2.0)
            * points.spread(coordinates.users(name, points))
            for name in names
        ],
        1,
    )
    mixing = np.eye(len(names)) + np.triu(rng.uniform(0, 0.6, (len(names), len(names))), 1)
    roots = np.sqrt(damages)
    return np.asarray(np.einsum("na,ab,nb->n", roots, mixing, roots))


def fitted(lattice: Lattice, count: int, seed: int = 0) -> tuple[DamageModel, Points, np.ndarray]:
    """A model fitted to `count` points that lose something; and the others with their losses."""
    coordinates, points = Coordinates(lattice), every_point(lattice)
    losses = planted(coordinates, points, seed)
    points, losses = points.select(np.flatnonzero(losses > 0)), losses[losses > 0]
    depth_numbers = {kept: number for number, kept in enumerate(lattice.depths)}

    def measure(setting: Setting) -> float:
        spec = lattice.spec
        wanted = {axis: setting.sizes.get(spec.key(axis), spec.sizes[axis]) for axis in points.sizes}
        one = {axis: np.array([size]) for axis, size in wanted.items()}
        return float(planted(coordinates, Points(np.array([depth_numbers[setting.kept]]), one, (1,)), seed)[0])

    curves = measure_curves(coordinates, measure)
    order = np.random.default_rng(seed).permutation(len(losses))
    chosen, rest = order[:count], order[count:]
    model = DamageModel(coordinates, curves, points.select(chosen), losses[chosen])
    return model, points.select(rest), losses[rest]


def test_a_curve_goes_through_what_was_measured_and_is_a_power_law_between() -> None:
    cuts = (0.1, 0.3, 0.5)
    curve = Curve(cuts, tuple(0.7 * cut**1.6 for cut in cuts))
    found = np.array([0.0, 0.01, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6])
    assert curve.at(found) == pytest.approx(0.7 * found**1.6)
    single = Curve((0.5,), (0.2,))
    assert single.at(np.array([0.5, 0.25])) == pytest.approx([0.2, 0.2 * 0.5**1.5])


def test_a_curve_never_falls_and_bears_a_loss_of_nothing() -> None:
    cut = np.linspace(0, 1, 301)
    for losses in ([0.1, 0.05, 0.2], [0.0, 0.0, 1e-3], [0.3, 0.3, 0.3], [1e-12, 1.0, 0.5]):
        found = Curve((0.2, 0.4, 0.6), tuple(losses)).at(cut)
        assert np.isfinite(found).all()
        assert found[0] == 0
        assert (np.diff(found) >= -1e-15).all()
    with pytest.raises(ValueError, match="must ascend"):
        Curve((0.2, 0.1), (1.0, 2.0))
    with pytest.raises(ValueError, match="above 0"):
        Curve((0.0, 0.1), (0.0, 2.0))


@pytest.mark.parametrize("seed", range(10))
def test_least_squares_without_negative_coefficients_against_every_choice_of_zeros(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, wanted = rng.normal(size=(12, 6)), rng.normal(size=12)
    best, least = np.zeros(6), np.linalg.norm(wanted)
    for free in itertools.chain.from_iterable(itertools.combinations(range(6), n) for n in range(1, 7)):
        solution = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
        error = np.linalg.norm(matrix[:, free] @ solution - wanted)
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(6), error
            best[list(free)] = solution
    assert nonnegative(matrix, wanted) == pytest.approx(best, abs=1e-9)


def test_ranks_and_their_correlation() -> None:
    values = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 2.0])
    slow = [sum(other < one for other in values) + (sum(other == one for other in values) - 1) / 2 for one in values]
    assert ranks(values).tolist() == slow
    rng = np.random.default_rng(0)
    one, other = rng.permutation(20).astype(float), rng.permutation(20).astype(float)
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    assert spearman(one, other) == pytest.approx(1 - 6 * np.square(one - other).sum() / (20 * 399))
    assert spearman(one, np.exp(one)) == pytest.approx(1)
    assert spearman(one, np.ones(20)) == 0


def test_shares_that_points_cut() -> None:
    lattice = lattice_of()
    coordinates, points = Coordinates(lattice), every_point(lattice)
    assert coordinates.names == ("num_hidden_layers", *AXES)
    rng = np.random.default_rng(0)
    for place in rng.choice(points.shape[0], 50, replace=False):
        size = {axis: int(sizes[place]) for axis, sizes in points.sizes.items()}
        kept = lattice.depths[points.depth[place]]
        wanted = {
            "num_hidden_layers": 1 - len(kept) / 8,
            "hidden_size": 1 - size["hidden"] / 32,
            "intermediate_size": 1 - size["ffn"] / 56,
            "mamba_num_heads": 1 - size["mamba_head"] / 8,
            "num_key_value_heads": 1 - size["kv_head"] / 2,
            # Of the two query heads that each KV head has.
            "num_attention_heads": 1 - size["query_head"] / size["kv_head"] / 2,
            "n_routed_experts": 1 - size["expert"] / 6,
            "moe_intermediate_size": 1 - size["expert_ffn"] / 24,
        }
        found = {name: float(points.spread(coordinates.cut(name, points))[place]) for name in wanted}
        assert found == pytest.approx(wanted)
        left = "".join(lattice.spec.letters[layer] for layer in kept)
        users = {"hidden_size": 1.0, "intermediate_size": left.count("-"), "n_routed_experts": left.count("E") / 2}
        assert {name: float(points.spread(coordinates.users(name, points))[place]) for name in users} == users


def test_layers_that_are_left_out_weigh_by_their_scores() -> None:
    spec = tiny()
    scores = random_scores(spec)
    lattice = one_a_layout(build_lattice(spec, WORKLOAD, scores=scores), scores)
    weights = scores.importance["layer", None]
    settings = Coordinates(lattice, scores).settings("num_hidden_layers")
    wanted = sorted(1 - weights[list(kept)].sum() / weights.sum() for kept in lattice.depths[1:])
    assert [setting.cut for setting in settings] == pytest.approx(wanted)
    assert {setting.kept for setting in settings} == set(lattice.depths[1:])


def test_what_is_cut_alone_takes_along_what_it_must() -> None:
    settings = Coordinates(lattice_of()).settings("num_key_value_heads")
    assert [setting.sizes for setting in settings] == [{"num_key_value_heads": 1, "num_attention_heads": 2}]
    spec = spec_of({"model_type": "llama", "tie_word_embeddings": False} | LLAMA_SIZES)
    widths = parse_widths(spec, {"hidden_size": "32,30,27", "num_attention_heads": "4,2", "num_key_value_heads": "2,1"})
    found = Coordinates(Lattice(spec, (tuple(range(4)),), widths)).settings("hidden_size")
    # transformers wants a multiple of the heads: 30 is one of 2, 27 of none.
    assert [setting.sizes for setting in found] == [{"hidden_size": 30, "num_attention_heads": 2}]


@pytest.mark.parametrize("seed", range(3))
def test_planted_losses_are_found_again_on_points_that_were_not_measured(seed: int) -> None:
    model, rest, losses = fitted(lattice_of(), 32, seed)
    predicted = rest.spread(model.predict(rest))
    assert spearman(predicted, losses) > 0.98
    assert np.std(np.log(predicted / losses)) < 0.15
    assert model.heldout.rank_correlation > 0.95
    told = model.to_json()
    assert told["combinations"] == 32
    assert set(told["curves"]) == {"num_hidden_layers", *AXES}


def test_the_interactions_are_worth_fitting() -> None:
    model, rest, losses = fitted(lattice_of(), 32)
    points = Points(rest.depth[:0], {axis: sizes[:0] for axis, sizes in rest.sizes.items()}, (0,))
    alone = DamageModel(model.coordinates, model.curves, points, [])
    errors = [np.abs(np.log(one.predict(rest) / losses)).mean() for one in (model, alone)]
    assert errors[0] < 0.5 * errors[1]


def test_to_cut_more_never_looks_better() -> None:
    lattice = lattice_of(hidden_size="32,28,24", n_routed_experts="6,4,2", moe_intermediate_size="24,20,16")
    coordinates = Coordinates(lattice)
    rng = np.random.default_rng(0)
    curves = {name: Curve((0.1, 0.2), tuple(rng.random(2))) for name in coordinates.names}
    points = every_point(lattice)
    # Losses that make no sense: whatever is measured, the model stays monotone.
    model = DamageModel(coordinates, curves, points.select(np.arange(0, 20)), rng.random(20))
    cuts = np.stack([points.spread(coordinates.cut(name, points)) for name in coordinates.names], 1)
    predicted = points.spread(model.predict(points))
    # [one, other] whether one cuts no axis less; in all layers, for a layer that is gone loses nothing by other cuts.
    more = (cuts[:, None] >= cuts[None]).all(2) & (points.depth[:, None] == points.depth[None])
    assert more.sum() > 3 * len(cuts)
    assert (predicted[:, None] >= predicted[None] - 1e-12)[more].all()


def test_blocks_of_a_lattice_are_predicted_as_points_are() -> None:
    spec = nano_12b()
    lattice = build_lattice(spec, WORKLOAD)
    coordinates = Coordinates(lattice)
    rng = np.random.default_rng(0)
    curves = {name: Curve((0.1, 0.2), (0.1 * rng.random(), 0.5)) for name in coordinates.names}
    points, _ = next(lattice.chunks(5000))
    some = rng.choice(np.prod(points.shape), 40, replace=False)
    model = DamageModel(coordinates, curves, points.select(some), rng.random(40), forms=[Form(0.85, True, 0.1)])
    whole = points.spread(model.predict(points)).ravel()
    assert whole[some] == pytest.approx(model.predict(points.select(some)))
    assert model.directions(points.select(some)).shape == (40, len(coordinates.names))


def test_a_good_candidate_can_be_made_to_weigh_more() -> None:
    lattice = lattice_of(hidden_size="32,28,24,20", n_routed_experts="6,5,4,3,2")
    coordinates, points = Coordinates(lattice), every_point(lattice)
    curves = {name: Curve((0.2, 0.4), (0.1, 0.3)) for name in coordinates.names}
    # A law that no form has: what is fitted best then depends on what weighs most.
    losses = planted(coordinates, points) * np.exp(3 * points.spread(coordinates.cut("hidden_size", points)))
    cut = losses > 1e-9
    points, losses = points.select(np.flatnonzero(cut)), losses[cut]
    best = np.argsort(losses)[:5]
    errors = []
    for focus in (0.0, 2.0):
        model = DamageModel(coordinates, curves, points, losses.tolist(), forms=[Form(1.0, True, 1e-6)], focus=focus)
        errors.append(np.square(model.predict(points)[best] / losses[best] - 1).mean())
    assert errors[1] < 0.8 * errors[0]
