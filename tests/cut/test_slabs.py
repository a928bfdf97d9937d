"""A tensor that is read, cut and written a few rows at a time is the tensor that is cut whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import CUTS, HYBRID_CUTS, random_scores, scored
from family_sizes import FAMILY_SIZES
from tiny_models import save_family

from minitron.cut.in_memory import cut_model
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.model import slabs
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec

SMALL = 200
"""Bytes of a slab: one or two rows of 32 numbers."""


def both(model: Path, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders cut whole and a few rows at a time, which stays so until the test ends."""
    prune(model, plan, folder / "whole")
    monkeypatch.setattr(slabs, "SLAB_BYTES", SMALL)
    monkeypatch.setattr(slabs, "AHEAD_BYTES", 2 * SMALL)
    prune(model, plan, folder / "rows")
    return folder / "whole", folder / "rows"


@pytest.mark.parametrize("fixture", list(CUTS))
def test_indices_are_the_same_bytes(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(fixture)
    spec = read_spec(model)
    layers = tuple(layer for layer in range(len(spec.layers)) if layer != 2)
    fallback = weight_magnitude(Checkpoint(model), spec)
    axes = [key for key in random_scores(spec).importance if key[0] in spec.sizes]
    magnitudes = {key: fallback(*key) for key in axes}
    plan = make_plan(spec, CUTS[fixture]["all"], layers, random_scores(spec), fallback=fallback)
    whole, rows = both(model, plan, tmp_path, monkeypatch)
    assert (whole / "model.safetensors").read_bytes() == (rows / "model.safetensors").read_bytes()
    # Magnitudes are summed a few rows at a time, too.
    again = weight_magnitude(Checkpoint(model), spec)
    for key, magnitude in magnitudes.items():
        np.testing.assert_allclose(again(*key), magnitude, rtol=1e-12)


@pytest.mark.parametrize("experts", [None, 2])
def test_experts_of_one_tensor_are_the_same_bytes(
    experts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_family(tmp_path / "model", "gpt_oss", **FAMILY_SIZES["gpt_oss"][0])
    spec = read_spec(model)
    assert any(rule.is_stacked and rule.transposed for rules in spec.rules.values() for rule in rules)
    sizes = {spec.key("expert_ffn"): spec.sizes["expert_ffn"] // 2}
    if experts:
        sizes[spec.key("expert")] = experts
    plan = make_plan(spec, sizes, tuple(range(len(spec.layers))), random_scores(spec))
    whole, rows = both(model, plan, tmp_path, monkeypatch)
    assert (whole / "model.safetensors").read_bytes() == (rows / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fixture", ["tiny_hybrid", "tiny_llama_tied"])
def test_products_are_rounded_alike_in_a_file_and_in_memory(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(fixture)
    spec, scores = scored(model)
    sizes = {"hidden_size": 24, "intermediate_size": 40}
    if fixture == "tiny_hybrid":
        sizes |= {key: HYBRID_CUTS["all"][key] for key in ("moe_intermediate_size", "mamba_num_heads", "head_dim")}
    layers = tuple(range(len(spec.layers)))
    plan = make_plan(spec, sizes, layers, scores, rotate=True, project=True)
    assert plan.rotates and plan.folds
    whole, rows = both(model, plan, tmp_path, monkeypatch)
    old, new = Checkpoint(whole), Checkpoint(rows)
    assert list(old.headers) == list(new.headers)
    for name, tensor in old.tensors():
        torch.testing.assert_close(new.tensor(name), tensor, rtol=1e-5, atol=1e-6, msg=name)
    cpu = torch.device("cpu")
    small = cut_model(load_model(model, dtype=torch.float32, device=cpu), spec, plan).state_dict()
    written = load_model(rows, dtype=torch.float32, device=cpu).state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in small.items())
