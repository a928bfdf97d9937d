"""The Fisher matrix of a linear's outputs: against what small errors do to the predictions, in float64, and layer by
layer against the whole model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from importance.score import fisher
from importance.score.calibrate import calibrate, score_model
from importance.score.fisher import SHRINKAGE, InMemory, output_moments, root_of
from importance.score.moments import Moments
from importance.score.options import ScoringOptions
from importance.score.stream_directions import CARRIED, HARM, turned
from importance.score.totals import Totals
from minitron.cut.refit import InputSite
from minitron.cut.selection import STREAM
from minitron.model.layerwise import LayerwiseModel
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.tensor_map import module_name

TOKENS = 6


def loaded(folder: Path) -> tuple[PreTrainedModel, ModelSpec]:
    model = load_model(folder, dtype=torch.float64, device=torch.device("cpu"))
    # The grouped kernel knows no float64.
    model.set_experts_implementation("eager")
    return model, read_spec(folder)


def sites_of(spec: ModelSpec) -> tuple[InputSite, ...]:
    return tuple(site for site in Moments(spec, 1).sites.values() if site.key[0] in spec.sizes)


def blocks_of(spec: ModelSpec, sequences: int, length: int = TOKENS) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, spec.sizes["vocab"], (sequences, length))


@torch.no_grad()
def loss_of(model: PreTrainedModel, module: str, ids: Tensor, error: Tensor) -> float:
    """The mean over tokens, at which one at a time `error` [O] is added to the module's output, of the sum of the KL of
    this token's predictions and all behind it."""
    linear, whole = model.get_submodule(module), model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    total = 0.0
    for token in range(ids.shape[1]):

        def moved(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor, at: int = token) -> Tensor:
            changed = output.clone()
            # The experts' module is given the tokens in one row.
            changed.view(-1, output.shape[-1])[at] += error
            return changed

        handle = linear.register_forward_hook(moved)
        other = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        handle.remove()
        total += float((whole.exp() * (whole - other)).sum())
    return total / ids.shape[1]


@pytest.mark.parametrize("family", ["hybrid_latent", "llama_tied"])
def test_it_tells_what_small_errors_do_to_the_predictions(request: pytest.FixtureRequest, family: str) -> None:
    model, spec = loaded(request.getfixturevalue(f"tiny_{family}"))
    block = blocks_of(spec, 1)
    sites = sites_of(spec)
    # One sequence again and again, each time with signs of its own: their mean is what is expected of them.
    found, used = output_moments(InMemory(model, spec), sites, block.repeat(1500, 0), Totals(), batch_size=250)
    assert used == 1500 and found.keys() == {site.key for site in sites}
    chance = torch.Generator().manual_seed(1)
    for site in sites[:: max(1, len(sites) // 3)]:
        moments = torch.from_numpy(found[site.key]).double()
        error = torch.randn(len(moments), generator=chance, dtype=torch.float64)
        # Norms and the scan reckon in fp32 whatever the model is in: a smaller step drowns in that.
        error *= 3e-3 / float((error @ moments @ error).sqrt())
        lost = loss_of(model, module_name(site.rule, site.layer), torch.from_numpy(block), error)
        assert lost == pytest.approx(float(error @ moments @ error) / 2, rel=0.1), site.key


@pytest.mark.parametrize("family", ["hybrid", "llama"])
def test_layer_by_layer_it_is_the_same(request: pytest.FixtureRequest, family: str, tmp_path: Path) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    model, spec = loaded(folder)
    blocks, sites, totals = blocks_of(spec, 5, 24), sites_of(spec), Totals()
    whole, used = output_moments(InMemory(model, spec), sites, blocks, Totals(), batch_size=2)
    source = LayerwiseModel(folder, spec, dtype=torch.float64, device=torch.device("cpu"))
    source.model.set_experts_implementation("eager")
    (tmp_path / "states").mkdir()
    (tmp_path / "results").mkdir()
    parts, again = output_moments(
        source, sites, blocks, totals, batch_size=2, folder=tmp_path / "states", results=tmp_path / "results"
    )
    assert used == again == 5 and whole.keys() == parts.keys()
    for key, moments in whole.items():
        np.testing.assert_allclose(parts[key], moments, rtol=1e-5, atol=1e-6 * moments.max(), err_msg=str(key))
    assert not totals.sums
    # What went into the layers is let go of on the way back.
    assert len(list((tmp_path / "states").iterdir())) == 2 * 3


def test_scores_are_those_of_weighted_errors(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    options = ScoringOptions(
        samples=4, sequence_length=16, batch_size=2, layers="none", estimator="fisher", dtype="fp32"
    )
    away = calibrate(
        tiny_hybrid,
        short_text,
        ScoringOptions(**{**options.__dict__, "offload": True, "offload_folder": tmp_path}),
        device="cpu",
        output=tmp_path / "scores.safetensors",
    )
    here = calibrate(tiny_hybrid, short_text, options, device="cpu")
    assert here.settings["output_samples"] == away.settings["output_samples"] == 4
    for key, values in here.importance.items():
        np.testing.assert_allclose(away.importance[key], values, rtol=1e-3, atol=1e-6, err_msg=str(key))
    blocks = blocks_of(spec, 4, 16)
    surgeon, weighted = (
        score_model(model, spec, blocks, ScoringOptions(layers="none", estimator=name))
        for name in ("surgeon", "fisher")
    )
    assert "output_samples" not in surgeon.settings
    changed = {key[0] for key, values in weighted.importance.items() if not (values == surgeon.importance[key]).all()}
    assert changed == {"ffn", "query_head", "shared_ffn", "expert_ffn"} & {key[0] for key in surgeon.importance}


def test_few_tokens_of_a_long_text_are_enough(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "TOKENS", 40)
    monkeypatch.setattr(fisher, "LARGEST", 100)
    model, spec = loaded(tiny_llama)
    sites = sites_of(spec)[:1]
    found, used = output_moments(InMemory(model, spec), sites, blocks_of(spec, 9, 12), Totals())
    assert used == 3
    (diagonal,) = found.values()
    monkeypatch.undo()
    whole, _ = output_moments(InMemory(model, spec), sites, blocks_of(spec, 9, 12)[[0, 4, 8]], Totals())
    np.testing.assert_allclose(diagonal, np.diagonal(whole[sites[0].key]), rtol=1e-5)


def test_directions_are_those_of_the_geometric_mean() -> None:
    chance = np.random.default_rng(0)
    axes = np.linalg.qr(chance.normal(size=(4, 4)))[0]
    totals, carried, harm = Totals(), np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 2.0, 8.0, 0.5])
    for name, values in ((CARRIED, carried), (HARM, harm)):
        totals.add(name, torch.from_numpy((axes * values) @ axes.T))
    covariance = (axes * carried) @ axes.T
    found = turned(totals, {STREAM: covariance})[STREAM]
    energies, vectors = np.linalg.eigh(found)
    np.testing.assert_allclose(energies[::-1], carried)  # those of the covariance
    order = np.argsort(-carried * harm)
    np.testing.assert_allclose(np.abs(vectors[:, ::-1].T @ axes[:, order]), np.eye(4), atol=1e-6)
    assert not totals.sums


def test_the_stream_is_turned_where_gradients_are_taken(
    tiny_hybrid: Path, short_text: Path, tiny_llama_tied: Path
) -> None:
    found = {}
    for name, folder in (("hybrid", tiny_hybrid), ("tied", tiny_llama_tied)):
        for estimator in ("surgeon", "fisher"):
            options = ScoringOptions(
                samples=4, sequence_length=16, batch_size=2, layers="none", estimator=estimator, dtype="fp32"
            )
            found[name, estimator] = calibrate(folder, short_text, options, device="cpu").covariance[STREAM]
    by_gradients, without = (found["hybrid", estimator] for estimator in ("fisher", "surgeon"))
    energies = [np.linalg.eigvalsh(matrix.astype(np.float64)) for matrix in (by_gradients, without)]
    np.testing.assert_allclose(*energies, rtol=1e-3, atol=1e-6 * energies[0].max())
    assert np.abs(by_gradients - without).max() > 1e-2 * np.abs(without).max()
    # A tied model's stream is not rotated, so that it needs no directions.
    np.testing.assert_array_equal(found["tied", "fisher"], found["tied", "surgeon"])


def test_a_root_is_a_root() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 9))
    moments = (rows.T @ rows).astype(np.float32)
    mean = np.diagonal(moments).mean()
    root = root_of(moments).numpy()
    np.testing.assert_allclose(root.T @ root, moments / mean + SHRINKAGE * np.eye(9), rtol=1e-6, atol=1e-6)
    flat = root_of(np.diagonal(moments).copy()).numpy()
    np.testing.assert_allclose(flat**2, np.diagonal(moments) / mean + SHRINKAGE, rtol=1e-6)
    assert (root_of(np.zeros((3, 3), np.float32)).numpy() == 1).all()
