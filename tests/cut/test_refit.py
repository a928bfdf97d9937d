"""Linears that lose inputs are fitted to those that stay, and the inputs to lose are chosen with that in mind."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import scored
from safetensors.torch import load_file, save_file

from importance.score.moments import PERIOD, TOKENS_AN_INPUT, Moments, lower_products, mirrored
from importance.score.surgeon import refit_errors, removal_scores
from importance.score.totals import Totals
from minitron.cut.basis import Basis
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import load_plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.refit import fold, input_sites
from minitron.cut.scores import load_scores
from minitron.errors import MinitronError
from minitron.model.loading import load_model
from minitron.model.spec import read_spec


def inputs(count: int, size: int, rank: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, rank)) @ rng.standard_normal((rank, size))


def test_a_fold_is_ridge_regression() -> None:
    seen = inputs(200, 10, 10)
    kept = np.array([0, 2, 3, 7])
    moments = seen.T @ seen / len(seen)
    ridge = 0.01
    # An independent solver: least squares on rows that stand for the ridge.
    extra = np.sqrt(len(seen) * ridge * np.diag(moments).mean()) * np.eye(4)
    wanted = np.linalg.lstsq(np.vstack([seen[:, kept], extra]), np.vstack([seen, np.zeros((4, 10))]), rcond=None)[0].T
    np.testing.assert_allclose(fold(moments, kept, ridge), wanted, atol=1e-10)


def test_inputs_that_follow_from_the_rest_are_not_missed() -> None:
    moments = np.cov(inputs(500, 12, 6), rowvar=False, bias=True)
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 12)))
    kept = np.arange(6)
    least, found, most = refit_errors(weight, moments, moments, kept, (1e-10, 0.1, 1e6))
    assert least < 1e-8 * most
    change = weight.numpy() @ (fold(moments, kept, 0.1) @ np.eye(12)[kept] - np.eye(12))
    wanted = np.trace(change @ moments @ change.T)
    assert found == pytest.approx(wanted, rel=1e-9)
    other = np.cov(inputs(500, 12, 12, seed=5), rowvar=False, bias=True)
    assert refit_errors(weight, moments, other, kept, (0.1,)) == pytest.approx([np.trace(change @ other @ change.T)])
    nothing = np.zeros((12, 12))
    gone = weight.numpy()[:, 6:]
    wanted = np.trace(gone @ other[6:, 6:] @ gone.T)
    assert refit_errors(weight, nothing, other, kept, (0.1,)) == pytest.approx([wanted])
    # What was never seen leaves nothing to fit.
    np.testing.assert_array_equal(fold(np.zeros((4, 4)), np.array([1, 2]), 0.1), np.eye(4)[:, [1, 2]])


@pytest.mark.parametrize("width", [1, 2])
def test_the_surgeon_takes_what_brute_force_would_take_first(width: int) -> None:
    seen = inputs(400, 8, 8, seed=3)
    moments = seen.T @ seen / len(seen)
    weight = torch.from_numpy(np.random.default_rng(2).standard_normal((6, 8)))
    scores = removal_scores(weight, moments, 1e-9, width)
    groups = np.arange(8).reshape(-1, width)
    errors = []
    for group in groups:
        kept = np.setdiff1d(np.arange(8), group)
        errors += refit_errors(weight, moments, moments, kept, (1e-9,))
    first = int(np.argmin(errors))
    assert scores.argmin() == first and scores[first] ** 2 == pytest.approx(min(errors), rel=1e-4)
    # The last of all costs all: the error of a linear that reads nothing.
    assert scores.max() ** 2 == pytest.approx(np.trace(weight.numpy() @ moments @ weight.numpy().T), rel=1e-4)


@pytest.mark.parametrize(("width", "parts"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_surgeon_goes_on_as_slow_float64_does(width: int, parts: int) -> None:
    """Algorithm 1 with the inverse of what is left made anew at every step."""
    seen = inputs(600, 48, 48, seed=6)
    moments, ridge = seen.T @ seen / len(seen), 1e-3
    weight = np.random.default_rng(7).standard_normal((5, 48))
    damped = moments + ridge * np.diag(moments).mean() * np.eye(48)
    left, wanted, total = list(range(48 // width)), np.zeros(48 // width), 0.0
    product = weight @ damped
    while left:
        columns = (np.array(left)[:, None] * width + np.arange(width)).ravel()
        inverse = np.linalg.inv(damped[np.ix_(columns, columns)])
        refitted = product[:, columns] @ inverse
        errors = {}
        for place, group in enumerate(left):
            own = np.arange(place * width, (place + 1) * width)
            block = refitted[:, own]
            errors[group] = np.trace(block @ np.linalg.inv(inverse[np.ix_(own, own)]) @ block.T)
        size = 48 // width // parts
        counts = [sum(group // size == run for group in left) for run in range(parts)]
        allowed = [group for group in left if counts[group // size] == max(counts)]
        gone = min(allowed, key=errors.__getitem__)
        total += errors[gone]
        wanted[gone] = total**0.5
        left.remove(gone)
    found = removal_scores(torch.from_numpy(weight), moments, ridge, width, parts)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_runs_lose_the_same_number() -> None:
    seen = inputs(100, 12, 12, seed=4)
    seen[:, :6] *= 0.01
    scores = removal_scores(torch.eye(12), seen.T @ seen / 100, 1e-6, 1, 2)
    order = np.argsort(scores, kind="stable")
    assert all(sorted(order[start : start + 2] // 6) == [0, 1] for start in range(0, 12, 2))


def test_sites_are_the_linears_that_read_what_a_layer_made(tiny_hybrid: Path, tiny_llama: Path) -> None:
    assert {(site.key[0], site.rule.name.split(".")[-2]) for site in input_sites(read_spec(tiny_hybrid))} == {
        ("mamba_channel", "out_proj"),
        ("expert_ffn", "down_proj"),
        ("shared_ffn", "down_proj"),
        ("query_head", "o_proj"),
        ("ffn", "down_proj"),
    }
    assert {site.key[0] for site in input_sites(read_spec(tiny_llama))} == {"query_head", "ffn"}


@pytest.mark.parametrize(("width", "parts"), [(1, 1), (4, 3)])
def test_side_by_side_inputs_go_as_they_do_alone(width: int, parts: int) -> None:
    random = np.random.default_rng(7)
    moments = np.stack([one.T @ one / 200 for one in (inputs(200, 24, 24, seed) for seed in range(3))])
    # An expert that got no tokens.
    moments[1] = 0
    weight = torch.from_numpy(random.standard_normal((3, 5, 24)))
    together = removal_scores(weight, moments, 1e-3, width, parts)
    alone = [removal_scores(*pair, 1e-3, width, parts) for pair in zip(weight, moments, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-12)
    assert (together[1] == 0).all() and (together[::2] > 0).all()


@pytest.mark.parametrize("size", [1, 128, 129, 700, 1100])
def test_products_in_strips_are_all_products(size: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(size).standard_normal((40, size)))
    sums = lower_products(rows[:25]) + lower_products(rows[25:])
    torch.testing.assert_close(mirrored(sums), rows.T @ rows, rtol=1e-12, atol=1e-12)


def test_moments_are_those_of_what_linears_read(tiny_hybrid: Path) -> None:
    _, scores = scored(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    seen: list[torch.Tensor] = []
    model.model.layers[4].mixer.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.from_numpy(np.random.default_rng(0).integers(0, 300, (16, 32))))
    rows = seen[0].flatten(0, 1).double().numpy()
    np.testing.assert_allclose(scores.covariance["ffn", 4], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    # Every expert its own tokens.
    up = model.model.layers[1].mixer.experts.up_proj
    assert scores.covariance["expert_ffn", 1].shape == (6, 24, 24) and up.shape[0] == 6
    assert set(scores.ridges) == set(scores.covariance) - {("hidden", None)}


def test_a_refit_is_the_same_in_file_and_in_memory(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec, scores = scored(tiny_hybrid)
    scores.save(tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors")
    assert again.ridges == scores.ridges
    sizes = {"intermediate_size": 40, "moe_intermediate_size": 16, "mamba_num_heads": 6}
    plan = make_plan(spec, sizes, tuple(range(8)), again)
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert set(loaded.folds) == set(plan.folds) and len(plan.folds) == 3 + 2 * 6 + 1
    prune(tiny_hybrid, loaded, tmp_path / "small")
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    small = cut_model(model, spec, loaded)
    written = load_model(tmp_path / "small", dtype=torch.float32, device=torch.device("cpu")).state_dict()
    assert all((written[name] == tensor).all() for name, tensor in small.state_dict().items())
    assert not make_plan(spec, sizes, tuple(range(8)), again, refit=False).folds


def test_channels_that_say_what_others_say_go_without_a_loss(tiny_hybrid: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    tensors = load_file(parent / "model.safetensors")
    (up,) = (name for name in tensors if name.endswith("layers.4.mixer.up_proj.weight"))
    tensors[up][40:] = tensors[up][:16]
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    spec, scores = scored(parent)
    model = load_model(parent, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 300, (8, 32)))
    errors = []
    for refit in (True, False):
        plan = make_plan(spec, {"intermediate_size": 40}, tuple(range(8)), scores, refit=refit)
        with torch.no_grad():
            errors.append(float((cut_model(model, spec, plan)(ids).logits - model(ids).logits).abs().max()))
    # The ridge alone is left.
    assert errors[0] < 0.05 < 0.2 < errors[1]


def test_a_projected_head_is_not_refitted(tiny_hybrid: Path) -> None:
    spec, scores = scored(tiny_hybrid)
    plan = make_plan(spec, {"hidden_size": 24}, tuple(range(8)), scores)
    assert plan.folds == {} and isinstance(plan.keep["hidden", None], Basis)


def test_the_surgeon_needs_second_moments(tiny_hybrid: Path) -> None:
    with pytest.raises(MinitronError, match="second moments"):
        scored(tiny_hybrid, refit=False)


def test_tokens_are_thinned_out_to_what_a_matrix_needs(tiny_hybrid: Path) -> None:
    spec = read_spec(tiny_hybrid)
    moments = Moments(spec, 1_000_000)
    site = moments.sites["ffn", 4]
    assert moments.stride(site) == 1_000_000 // (TOKENS_AN_INPUT * 56)
    assert Moments(spec, 1000).stride(site) == 1


def test_of_a_long_text_some_batches_are_looked_at_and_of_those_enough(tiny_hybrid: Path) -> None:
    spec = read_spec(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, spec.sizes["vocab"], (2, 512)))
    for tokens, looked in ((1024 * 4, 4), (1024 * 256, PERIOD // 4)):
        moments, totals = Moments(spec, tokens), Totals()
        site = moments.sites["ffn", 4]
        with torch.no_grad(), moments.observing(model, totals):
            for _ in range(min(tokens // 1024, 2 * PERIOD)):
                model(input_ids=ids)
        stride = moments.stride(site)
        rows = 1024 if stride == 1 else -(-1024 // (stride // PERIOD))
        assert totals["fitted", "tokens", site.key] == looked * rows
