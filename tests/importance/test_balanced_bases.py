"""Spaces that are linear on both sides are cut to their strongest directions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import scored
from tiny_models import save_hybrid

from importance.score.balanced_bases import balanced, spaces
from minitron.cut.basis import Basis
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import load_plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.scores import load_scores
from minitron.cut.selection import Fallback
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.kept_importance import kept_importance

WHOLE = tuple(range(8))


def by_chance(spec: ModelSpec) -> Fallback:
    return lambda axis, layer: np.random.default_rng(0).random(spec.sizes[axis])


def logits(model: Any) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 300, (4, 32)))
    with torch.no_grad():
        return model(ids).logits


def test_the_best_projector_of_all() -> None:
    rng = np.random.default_rng(0)
    metric, covariance = (matrix @ matrix.T for matrix in rng.standard_normal((2, 6, 6)))
    matrix, dual, strengths = balanced(metric, covariance)
    np.testing.assert_allclose(matrix.T @ dual, np.eye(6), atol=1e-8)

    def cost(projector: np.ndarray) -> float:
        change = np.eye(6) - projector
        return float(np.trace(metric @ change @ covariance @ change.T))

    for kept in range(1, 6):
        best = cost(dual[:, :kept] @ matrix[:, :kept].T)
        # What is left out is what the strengths say, and no projector of the rank does better.
        assert best == pytest.approx(np.square(strengths[kept:]).sum(), rel=1e-6)
        for _ in range(50):
            one, other = rng.standard_normal((2, 6, kept))
            assert cost(one @ np.linalg.pinv(other.T @ one) @ other.T) >= best * (1 - 1e-9)


def test_where_they_are(tiny_hybrid: Path, tiny_hybrid_latent: Path, tiny_llama: Path) -> None:
    heads = {("qk_head_dim", layer) for layer in (3, 7)} | {("v_head_dim", layer) for layer in (3, 7)}
    assert {space.key for space in spaces(read_spec(tiny_hybrid))} == heads
    latent = {(axis, layer) for axis in ("latent_in", "latent_out") for layer in (1, 6)}
    assert {space.key for space in spaces(read_spec(tiny_hybrid_latent))} == heads | latent
    # Rotary embeddings turn a head's channels in pairs.
    assert not list(spaces(read_spec(tiny_llama)))


@pytest.mark.parametrize("fixture", ["tiny_hybrid", "tiny_hybrid_latent"])
def test_all_directions_together_change_nothing(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    spec, scores = scored(folder)
    plan = make_plan(spec, {}, WHOLE, scores)
    keep = {key: Basis(np.array(matrix), np.array(dual)) for key, (matrix, dual, _) in scores.bases.items()}
    assert keep
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    turned = cut_model(model, spec, replace(plan, keep=keep))
    torch.testing.assert_close(logits(turned), logits(model), rtol=1e-3, atol=1e-3)


CUTS: dict[str, dict[str, int]] = {
    "head_dim": {"head_dim": 8},
    "head_dim and heads": {"head_dim": 8, "num_attention_heads": 2},
    "head_dim and groups": {"head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1},
    "latent": {"moe_latent_size": 12},
}


@pytest.mark.parametrize("case", CUTS)
def test_directions_lose_less_than_channels(case: str, tmp_path: Path) -> None:
    # Spaces of low rank, seen from a basis that no channel stands for alone.
    folder = save_hybrid(tmp_path / "parent", moe_latent_size=16)
    spec = read_spec(folder)
    _flatten(folder, spec)
    spec, scores = scored(folder)
    fallback = by_chance(spec)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    whole = {key: size for key, size in CUTS[case].items() if key not in ("head_dim", "moe_latent_size")}
    reference = logits(cut_model(model, spec, make_plan(spec, whole, WHOLE, scores, fallback=fallback, refit=False)))
    errors = []
    for project in (True, False):
        plan = make_plan(spec, CUTS[case], WHOLE, scores, fallback=fallback, project=project, refit=False)
        errors.append(float((logits(cut_model(model, spec, plan)) - reference).square().mean().sqrt()))
    assert errors[0] < 0.02 and errors[0] < 0.1 * errors[1]


def _flatten(folder: Path, spec: ModelSpec) -> None:
    """Leave each head 8 directions of values and of keys, and the latent spaces 12."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)

    def project(tensor: torch.Tensor, width: int, rank: int) -> torch.Tensor:
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:, :rank]
        heads = tensor.unflatten(0, (-1, width))
        return (basis @ (basis.T @ heads)).flatten(0, 1)

    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensors[name] = project(tensor, 12, 8)
        elif name.endswith("fc1_latent_proj.weight"):
            tensors[name] = project(tensor, 16, 12)
        elif name.endswith("fc2_latent_proj.weight"):
            tensors[name] = project(tensor.T.contiguous(), 16, 12).T.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_bases_survive_the_disk_and_are_what_is_cut(tiny_hybrid_latent: Path, tmp_path: Path) -> None:
    spec, scores = scored(tiny_hybrid_latent)
    scores.save(tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors")
    sizes = {"head_dim": 8, "moe_latent_size": 12}
    plan = make_plan(spec, sizes, WHOLE, again)
    plan.save(tmp_path / "plan.json")
    prune(tiny_hybrid_latent, load_plan(tmp_path / "plan.json"), tmp_path / "small")
    model = load_model(tiny_hybrid_latent, dtype=torch.float32, device=torch.device("cpu"))
    written = load_model(tmp_path / "small", dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(logits(written), logits(cut_model(model, spec, plan)), rtol=1e-4, atol=1e-4)
    shares = kept_importance(spec, again, sizes, WHOLE)
    strengths = np.square(scores.bases["v_head_dim", 3][2])
    assert shares["v_head_dim", 3] == pytest.approx(strengths[:8].sum() / strengths.sum(), rel=1e-5)
