"""Models whose layers differ in size, built and run: each against transformers' NemotronH of the full sizes, in which
units beyond a layer's own contribute nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import logits
from distilling import RECIPE, gradients
from family_sizes.base import HYBRID_SIZES, PATTERN
from safetensors.torch import load_file, save_file
from tiny_models import save_hybrid

from cli.app import run
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec

WORDS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
CPU = torch.device("cpu")

SIZES: dict[int, dict[str, int]] = {
    1: {"n_routed_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 1},
    3: {"num_key_value_heads": 1, "num_attention_heads": 2},
    4: {"intermediate_size": 40},
    6: {"n_routed_experts": 6, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 24},
    8: {"intermediate_size": 16},
}
"""Layer of PATTERN + `-` -> its own sizes."""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A NemotronH of the full sizes."""
    return save_hybrid(tmp_path / "whole", pattern=PATTERN + "-")


def puzzle(source: Path, folder: Path, sizes: dict[int, dict[str, int]], tensors: dict[str, torch.Tensor]) -> Path:
    """A nemotron_h_puzzle folder with these tensors and the given sizes in the blocks of `source`, a nemotron_h; what
    blocks say the config does not, as in published ones."""
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    letters = PATTERN + "-"
    blocks = [{"block_type": WORDS[letter]} | sizes.get(layer, {}) for layer, letter in enumerate(letters)]
    # What is the same in all layers of a mixture may stand in their blocks alone.
    for block in blocks:
        if block["block_type"] == "moe":
            for key in ("n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"):
                block.setdefault(key, HYBRID_SIZES[key])
    for key in ("n_routed_experts", "moe_intermediate_size", "num_experts_per_tok", "layers_block_type"):
        config.pop(key, None)
    config |= {"model_type": "nemotron_h_puzzle", "architectures": ["NemotronHPuzzleForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | {"block_configs": blocks}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def narrowed(whole: Path, silent: Path) -> dict[str, torch.Tensor]:
    """The tensors of SIZES, random units of `whole`; in `silent`, a copy of it, all others are made to contribute
    nothing: an MLP's channels, a query head and experts of which the routers' biases keep tokens away."""
    rng = np.random.default_rng(0)
    shutil.copytree(whole, silent)
    tensors = load_file(whole / "model.safetensors")
    small, full = dict(tensors), dict(tensors)

    def keep(name: str, dim: int, kept: np.ndarray, beyond: float = 0.0) -> None:
        index = torch.from_numpy(kept)
        small[name] = small[name].index_select(dim, index).contiguous()
        gone = torch.ones(full[name].shape[dim], dtype=torch.bool)
        gone[index] = False
        place = [slice(None)] * dim + [gone]
        full[name] = full[name].clone()
        full[name][tuple(place)] = beyond

    def some(of: int, count: int) -> np.ndarray:
        return np.sort(rng.choice(of, count, replace=False))

    at = "backbone.layers.{}.mixer."
    for layer, width in ((4, 40), (8, 16)):
        kept = some(HYBRID_SIZES["intermediate_size"], width)
        keep(at.format(layer) + "up_proj.weight", 0, kept)
        keep(at.format(layer) + "down_proj.weight", 1, kept)
    experts = some(6, 4)
    for name in ("gate.weight", "gate.e_score_correction_bias"):
        keep(at.format(1) + name, 0, experts, -1e4 if "bias" in name else 0.0)
    for part in ("up_proj", "down_proj"):
        own = {old: small.pop(f"{at.format(1)}experts.{old}.{part}.weight") for old in range(6)}
        small |= {f"{at.format(1)}experts.{new}.{part}.weight": own[old] for new, old in enumerate(experts.tolist())}
    for expert in range(6):
        kept = some(24, 16)
        keep(f"{at.format(6)}experts.{expert}.up_proj.weight", 0, kept)
        keep(f"{at.format(6)}experts.{expert}.down_proj.weight", 1, kept)
    shared = some(40, 24)
    keep(at.format(6) + "shared_experts.up_proj.weight", 0, shared)
    keep(at.format(6) + "shared_experts.down_proj.weight", 1, shared)
    # Of two groups of two query heads the first stays.
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        rows = np.arange(12 if name[0] in "kv" else 24)
        keep(f"{at.format(3)}{name}.weight", int(name == "o_proj"), rows)
    save_file(full, silent / "model.safetensors", metadata={"format": "pt"})
    return small


def test_layers_of_equal_sizes_compute_the_very_logits(whole: Path, tmp_path: Path) -> None:
    tensors = load_file(whole / "model.safetensors")
    same = puzzle(whole, tmp_path / "same", {4: {"intermediate_size": 56}, 8: {"intermediate_size": 56}}, tensors)
    assert torch.equal(logits(same), logits(whole))
    # The same config, called as the family whose layers are alike.
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"model_type": "nemotron_h"}))
    assert torch.equal(logits(same), logits(whole))


def test_layers_of_other_sizes_compute_what_is_left_of_the_full_ones(whole: Path, tmp_path: Path) -> None:
    tensors = narrowed(whole, tmp_path / "silent")
    own = puzzle(whole, tmp_path / "own", SIZES, tensors)
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    full = load_model(tmp_path / "silent", dtype=torch.float32, device=CPU)
    full.model.layers[1].mixer.gate.top_k = 1
    with torch.no_grad():
        wanted = full(ids).logits
    torch.testing.assert_close(logits(own), wanted, atol=2e-5, rtol=1e-5)
    # What was seen to be equal is no accident of layers that do nothing.
    assert (logits(whole) - wanted).abs().max() > 0.05


def test_a_cache_does_what_that_of_the_full_ones_does(whole: Path, tmp_path: Path) -> None:
    own = puzzle(whole, tmp_path / "own", SIZES, narrowed(whole, tmp_path / "silent"))
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def stepwise(folder: Path) -> torch.Tensor:
        model = load_model(folder, dtype=torch.float32, device=CPU)
        if folder != own:
            model.model.layers[1].mixer.gate.top_k = 1
        found = [model(ids[:, :8], use_cache=True)]
        for place in range(8, 12):
            found.append(model(ids[:, place : place + 1], past_key_values=found[0].past_key_values))
        return torch.cat([one.logits for one in found], 1)

    torch.testing.assert_close(stepwise(own), stepwise(tmp_path / "silent"), atol=2e-5, rtol=1e-5)


def test_a_plan_that_keeps_everything_writes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    own = puzzle(whole, tmp_path / "own", SIZES, narrowed(whole, tmp_path / "silent"))
    spec = read_spec(own)
    result = prune(own, make_plan(spec, {}, tuple(range(len(spec.layers)))), tmp_path / "out")
    before, after = (dict(Checkpoint(folder).tensors()) for folder in (own, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((own / "config.json").read_text()) == json.loads((tmp_path / "out" / "config.json").read_text())
    assert result.parameters == Checkpoint(own).num_parameters == spec.parameters().total


@pytest.mark.parametrize("places", ["student", "teacher", "both"])
def test_gradients_are_those_of_the_plain_formula(places: str, whole: Path, tmp_path: Path) -> None:
    own = puzzle(whole, tmp_path / "own", SIZES, narrowed(whole, tmp_path / "silent"))
    models = (own if places != "teacher" else whole, own if places != "student" else whole)
    ours, theirs = gradients(models, streamed=False)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def test_distillation_writes_a_folder_of_the_same_form(whole: Path, tmp_path: Path, short_text: Path) -> None:
    own = puzzle(whole, tmp_path / "own", SIZES, narrowed(whole, tmp_path / "silent"))
    result = distill(Distillation(student=own, teacher=whole, data=short_text, output=tmp_path / "out"), RECIPE)
    before, after = Checkpoint(own), Checkpoint(result.output)
    assert {name: header.shape for name, header in before.headers.items()} == {
        name: header.shape for name, header in after.headers.items()
    }
    assert json.loads((own / "config.json").read_text()) == json.loads((result.output / "config.json").read_text())
    assert not torch.equal(logits(own), logits(result.output))


def test_it_is_evaluated_beside_its_parent(
    whole: Path, tmp_path: Path, short_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = puzzle(whole, tmp_path / "own", SIZES, narrowed(whole, tmp_path / "silent"))
    options = ["--text", str(short_text), "--teacher", str(whole), "--json", "--no-speed", "--sequence-length", "64"]
    assert run(["eval", str(own), *options, "--dtype", "fp32", "--samples", "4"]) == 0
    (found,) = (json.loads(capsys.readouterr().out)["results"][str(folder)] for folder in (own,))
    assert found["kl_to_teacher"] > 0.001
    assert found["parameters"] == read_spec(own).parameters().total


def test_what_transformers_has_no_block_for_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    windows: dict[int, dict[str, int]] = {3: {"sliding_window": 8}}
    own = puzzle(whole, tmp_path / "own", windows, load_file(whole / "model.safetensors"))
    with pytest.raises(
        MinitronError, match="layer 3 a sliding_window of 8, and transformers' NemotronH has no windows"
    ):
        load_model(own)
