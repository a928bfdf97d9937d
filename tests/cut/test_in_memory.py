"""Cutting in memory is cutting a file: same tensors, same logits."""

from pathlib import Path

import pytest
import torch
from cuts import CUTS, random_scores

from minitron.builtin import MODEL
from minitron.cut.in_memory import cut_model
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec

CPU = torch.device("cpu")
CASES = [
    *((fixture, "all") for fixture in CUTS),
    *(("tiny_hybrid", case) for case in CUTS["tiny_hybrid"] if case != "all"),
    ("tiny_hybrid_latent", "latent"),
    ("tiny_llama_tied", "hidden"),
]


@pytest.mark.parametrize(("fixture", "case"), CASES)
@torch.no_grad()
def test_a_model_cut_in_memory_is_the_one_cut_in_a_file(
    fixture: str, case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent = request.getfixturevalue(fixture)
    spec = read_spec(parent)
    layers = tuple(layer for layer in range(len(spec.layers)) if case != "all" or layer not in (1, 2))
    plan = make_plan(
        spec,
        CUTS[fixture][case],
        layers,
        random_scores(spec),
        fallback=weight_magnitude(Checkpoint(parent), spec),
    )
    prune(parent, plan, tmp_path / "small")
    written = load_model(tmp_path / "small", dtype=torch.float32, device=CPU)
    model = load_model(parent, dtype=torch.float32, device=CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    cut = cut_model(model, spec, plan)

    assert cut.state_dict().keys() == written.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert torch.equal(cut.state_dict()[name], tensor), name
        assert cut.state_dict()[name].dtype == tensor.dtype, name
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut(ids).logits, written(ids).logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert cut.config.tie_word_embeddings == written.config.tie_word_embeddings
    assert not cut.training and not any(parameter.requires_grad for parameter in cut.parameters())


@torch.no_grad()
def test_a_bfloat16_model_is_cut_bit_for_bit_as_its_file(tmp_path: Path) -> None:
    spec = read_spec(MODEL)
    sizes = {"hidden_size": 224, "n_routed_experts": 6, "mamba_num_heads": 12, "moe_intermediate_size": 120}
    plan = make_plan(spec, sizes, tuple(range(11)), random_scores(spec))
    prune(MODEL, plan, tmp_path / "small")
    written = load_model(tmp_path / "small", dtype=torch.bfloat16, device=CPU).state_dict()
    cut = cut_model(load_model(MODEL, dtype=torch.bfloat16, device=CPU), spec, plan).state_dict()
    assert {name: tensor.dtype for name, tensor in cut.items()} == {
        name: tensor.dtype for name, tensor in written.items()
    }
    assert all(torch.equal(cut[name], tensor) for name, tensor in written.items())


def test_a_model_of_another_spec_is_refused(tiny_hybrid: Path, tiny_hybrid_latent: Path) -> None:
    spec = read_spec(tiny_hybrid)
    plan = make_plan(spec, {"hidden_size": 24}, tuple(range(len(spec.layers))), random_scores(spec))
    with pytest.raises(MinitronError, match=r"another shape of model\.layers\.1\.mixer\.experts"):
        cut_model(load_model(tiny_hybrid_latent, dtype=torch.float32, device=CPU), spec, plan)
