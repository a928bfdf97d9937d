"""Sizes by layer: what a plan that gives layers sizes of their own writes, in a file and in memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import add_mtp, kill_units, logits, random_scores
from family_sizes.base import HYBRID_SIZES, PATTERN
from safetensors.torch import load_file
from tiny_models import save_hybrid

from importance.score.calibrate import calibrate
from importance.score.options import ScoringOptions
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan, load_plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.scores import Scores
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec

CPU = torch.device("cpu")

BY_LAYER = {
    "intermediate_size": {4: 40, 8: 16},
    "n_routed_experts": {1: 4},
    "moe_intermediate_size": {6: 16},
    "moe_shared_expert_intermediate_size": {1: 32, 6: 24},
    "num_experts_per_tok": {6: 1},
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NemotronH with two MLPs and two mixtures."""
    return save_hybrid(tmp_path_factory.mktemp("parent") / "model", pattern=PATTERN + "-")


def plan_of(spec: ModelSpec, energy: dict[str, Any] | None = None, **changed: Any) -> Plan:
    scores = random_scores(spec)
    if energy is not None:
        scores = Scores(scores.importance, energy, scores.model, scores.data)
    given: dict[str, Any] = {"sizes": {"hidden_size": 24}, "layers": (0, 1, 3, 4, 5, 6, 8), "by_layer": BY_LAYER}
    given |= changed
    return make_plan(spec, given["sizes"], given["layers"], scores, by_layer=given["by_layer"])


def test_what_is_left_computes_what_the_killed_parent_does(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(parent)
    dead = Path(shutil.copytree(parent, tmp_path / "dead"))
    energy = kill_units(dead, spec, plan_of(spec))
    prune(dead, plan_of(read_spec(dead), energy), tmp_path / "small")
    model = load_model(dead, dtype=torch.float32, device=CPU)
    model.model.layers[6].mixer.gate.top_k = 1
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids).logits
    torch.testing.assert_close(logits(tmp_path / "small"), wanted, atol=3e-5, rtol=1e-5)
    assert (wanted - logits(parent)).abs().max() > 0.05


def test_the_folder_is_a_puzzle_of_the_promised_size(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(parent)
    plan = plan_of(spec)
    result = prune(parent, plan, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["model_type"] == "nemotron_h_puzzle"
    assert config["architectures"] == ["NemotronHPuzzleForCausalLM"]
    mixture = {"n_routed_experts": 4, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 32}
    other = {"n_routed_experts": 6, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 24}
    assert config["block_configs"] == [
        {"block_type": "mamba"},
        {"block_type": "moe"} | mixture | {"num_experts_per_tok": 2},
        {"block_type": "attention"},
        {"block_type": "mlp", "intermediate_size": 40},
        {"block_type": "mamba"},
        {"block_type": "moe"} | other | {"num_experts_per_tok": 1},
        {"block_type": "mlp", "intermediate_size": 16},
    ]
    assert not config.keys() & BY_LAYER.keys()
    written = load_file(tmp_path / "small" / "model.safetensors")
    assert written["backbone.layers.6.mixer.up_proj.weight"].shape == (16, 24)
    assert written["backbone.layers.5.mixer.experts.5.down_proj.weight"].shape == (24, 16)
    numbers = sum(tensor.numel() for tensor in written.values())
    assert plan.parameters == result.parameters == numbers
    assert result.weight_bytes == sum(tensor.nbytes for tensor in written.values())
    assert read_spec(tmp_path / "small").parameters() == plan.target(spec).parameters()


@torch.no_grad()
def test_a_model_cut_in_memory_is_the_one_cut_in_a_file(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(parent)
    prune(parent, plan_of(spec), tmp_path / "small")
    written = load_model(tmp_path / "small", dtype=torch.float32, device=CPU)
    cut = cut_model(load_model(parent, dtype=torch.float32, device=CPU), spec, plan_of(spec))
    assert cut.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(cut.state_dict()[name], tensor) for name, tensor in written.state_dict().items())
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut(ids).logits, written(ids).logits)


def test_a_puzzle_is_cut_further(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(parent)
    prune(parent, plan_of(spec), tmp_path / "one")
    once = read_spec(tmp_path / "one")
    by_layer = {"intermediate_size": {3: 8}, "n_routed_experts": {5: 3}, "num_experts_per_tok": {1: 1}}
    every = tuple(range(len(once.layers)))
    dead = Path(shutil.copytree(tmp_path / "one", tmp_path / "dead"))
    plan = plan_of(once, sizes={}, layers=every, by_layer=by_layer)
    kill_units(dead, once, plan)
    prune(dead, plan_of(read_spec(dead), sizes={}, layers=every, by_layer=by_layer), tmp_path / "two")
    model = load_model(dead, dtype=torch.float32, device=CPU)
    model.model.layers[1].mixer.gate.top_k = 1
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "two"), model(ids).logits, atol=3e-5, rtol=1e-5)
    twice = read_spec(tmp_path / "two")
    assert [twice.sizes_in(layer).get("ffn") for layer in (3, 6)] == [8, 16]
    assert (twice.routed(twice.layers[1]), twice.routed(twice.layers[5])) == ((4, 1), (3, 1))


def test_the_prediction_block_keeps_its_sizes(parent: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    add_mtp(folder, HYBRID_SIZES)
    spec = read_spec(folder)
    plan = plan_of(spec, sizes={"moe_intermediate_size": 20}, by_layer={"moe_intermediate_size": {1: 8, 6: 16}})
    prune(folder, plan, tmp_path / "small")
    small = read_spec(tmp_path / "small")
    assert small.config["mtp_block_configs"] == [
        {"block_type": "attention"},
        {"block_type": "moe", "moe_intermediate_size": 20},
    ]
    Checkpoint(tmp_path / "small").check(small)
    assert Checkpoint(tmp_path / "small").num_parameters == small.parameters().total + small.parameters().mtp


def test_plans_survive_the_disk(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(parent)
    plan = plan_of(spec)
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    again.require(spec)
    assert again.by_layer == plan.by_layer == BY_LAYER
    assert again.to_json() == plan.to_json()
    assert again.target(spec).config == plan.target(spec).config
    # How many, and not which.
    sizes_alone = make_plan(spec, {}, plan.layers, by_layer=BY_LAYER)
    assert plan.has_indices(spec) and not sizes_alone.has_indices(spec)
    routing = make_plan(spec, {}, plan.layers, by_layer={"num_experts_per_tok": {1: 1}})
    assert routing.has_indices(spec)
    prune(parent, routing, tmp_path / "routed")
    assert read_spec(tmp_path / "routed").routed("moe_1") == (6, 1)


@pytest.mark.parametrize(
    ("by_layer", "why"),
    [
        ({"intermediate_size": {4: 57}}, "intermediate_size = 57 in layer 4 cannot be reached from 56"),
        ({"intermediate_size": {4: 0}}, "choose 1 to 56"),
        ({"intermediate_size": {1: 16}}, "layer 1 has no intermediate_size"),
        ({"intermediate_size": {2: 16}}, "intermediate_size is given for layer 2, which does not stay"),
        ({"mamba_num_heads": {0: 4}}, "mamba_num_heads cannot differ from layer to layer in this model; what can: "),
        ({"n_routed_experts": {1: 1}}, "num_experts_per_tok = 2 is more than the 1 experts"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(parent: Path, by_layer: dict[str, dict[int, int]], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        plan_of(read_spec(parent), by_layer=by_layer)


def test_no_other_family_has_layers_that_differ(tiny_llama: Path) -> None:
    with pytest.raises(MinitronError, match="the layers of a llama model cannot differ in size, as no engine reads"):
        plan_of(read_spec(tiny_llama), sizes={}, layers=(0, 1), by_layer={"intermediate_size": {0: 24}})


def test_layers_that_differ_are_scored_as_layers_that_do_not(parent: Path, tmp_path: Path, short_text: Path) -> None:
    spec, every = read_spec(parent), tuple(range(9))
    # The units that a first cut leaves have the scores that they have where the others are dead.
    by_layer = {"intermediate_size": {4: 40, 8: 16}, "moe_intermediate_size": {6: 16}}
    plan = plan_of(spec, sizes={}, layers=every, by_layer=by_layer)
    dead = Path(shutil.copytree(parent, tmp_path / "dead"))
    kill_units(dead, spec, plan)
    prune(dead, plan_of(read_spec(dead), sizes={}, layers=every, by_layer=by_layer), tmp_path / "small")
    calibrate(tmp_path / "small", short_text, ScoringOptions(samples=4, sequence_length=32)).require(
        read_spec(tmp_path / "small")
    )
    options = ScoringOptions(samples=4, sequence_length=32, estimator="activation", dtype="fp32")
    found, wanted = (calibrate(folder, short_text, options) for folder in (tmp_path / "small", dead))
    assert found.importance.keys() == wanted.importance.keys() - {
        key for key in wanted.importance if key[0] in ("ssm_state",)
    }
    for key, values in found.importance.items():
        kept = plan.keep.get(key)
        other = wanted.importance[key]
        if isinstance(kept, np.ndarray):
            other = np.take_along_axis(other, kept, -1)
        np.testing.assert_allclose(values, other, rtol=2e-4, atol=1e-6, err_msg=str(key))
