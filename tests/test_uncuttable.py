"""What cannot be cut of families, or nothing at all: it is planned for and inspected, and what would cut it is refused
by name."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import random_scores
from family_sizes import FAMILY_SIZES
from safetensors.torch import load_file
from test_conformance import UNCUTTABLE, free_axes
from tiny_models import save_family

from cli.app import run
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.memory.loads import load_of
from minitron.memory.workload import Workload
from minitron.model.loading import load_model
from minitron.model.spec import read_spec, spec_of


@pytest.mark.parametrize("model_type", UNCUTTABLE)
def test_what_cannot_be_cut_is_refused_by_name(
    model_type: str, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][0])
    spec = read_spec(model)
    assert list(free_axes(spec)) == []
    layers = tuple(range(len(spec.layers)))
    for key, axes in spec.keys.items():
        with pytest.raises(MinitronError):
            make_plan(spec, {key: spec.sizes[axes[0]] // 2}, layers, random_scores(spec))
    for gone in layers:
        with pytest.raises(MinitronError, match=r"no layer of a .* can be left out"):
            make_plan(spec, {}, tuple(layer for layer in layers if layer != gone), random_scores(spec))
    capsys.readouterr()
    for command in (["score", "-o", "scores.safetensors"], ["compress", "--gpu", "A10G", "-o", "run"]):
        asked = [*command[:-1], str(tmp_path / command[-1])]
        assert run([asked[0], str(model), "--data", str(short_text), *asked[1:]]) == 2
        assert "can be cut, as its layers share blocks" in " ".join(capsys.readouterr().err.split())
    assert run(["plan", str(model), "--gpu", "A10G", "--context", "64"]) == 0


def test_a_block_that_layers_share_is_stored_once_and_read_by_each(tmp_path: Path) -> None:
    """transformers runs a shared block as often as layers name it: its products count for each of them."""
    model_type = "zamba2"
    folder = save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][0])
    spec, model = read_spec(folder), load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    products = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda linear, args, output: products.append(linear.weight.numel()))
    with torch.no_grad():
        model(torch.arange(20)[None] + 3)
    load = load_of(spec, Workload(20, weights="bf16"))
    # Beside linears there are the vectors of norms, convolutions and scans.
    rest = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim != 2 and "shared_transformer" not in name
    )
    uses = 2
    shared = uses * sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim != 2 and "shared_transformer" in name
    )
    counted = sum(load.dense.parameters.values()) + sum(load.head.parameters.values())
    assert counted == sum(products) + rest + shared
    assert np.isclose(load.dense.bytes + load.head.bytes, 2 * counted)


def test_a_zamba2_that_shares_nothing_is_refused_by_name() -> None:
    sizes = FAMILY_SIZES["zamba2"][0] | {"model_type": "zamba2"}
    with pytest.raises(MinitronError, match="tie_word_embeddings is false, and transformers then shares no blocks"):
        spec_of(sizes | {"tie_word_embeddings": False}).parameters()
    with pytest.raises(MinitronError, match="num_key_value_heads = 2 is not the number of query heads"):
        spec_of(sizes | {"num_key_value_heads": 2, "use_shared_attention_adapter": True}).parameters()


def test_layers_and_heads_of_lightning_attention_stay() -> None:
    """transformers makes a head's decay of its number among all and of the layer's, and checkpoints hold the decays."""
    spec = spec_of(FAMILY_SIZES["minimax"][0] | {"model_type": "minimax"})
    layers = tuple(range(len(spec.layers)))
    with pytest.raises(MinitronError, match="no layer of a minimax model can be left out, as the decays of lightning"):
        make_plan(spec, {}, layers[1:], random_scores(spec))
    for key, size in {"num_attention_heads": 2, "num_key_value_heads": 1, "block_size": 3}.items():
        with pytest.raises(MinitronError, match=f"{key} cannot be cut in a minimax model"):
            make_plan(spec, {key: size}, layers, random_scores(spec))


def test_decays_stay_as_they_are_beside_what_is_cut(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "minimax", **FAMILY_SIZES["minimax"][0])
    spec = read_spec(model)
    plan = make_plan(spec, {"hidden_size": 24, "num_local_experts": 4}, (0, 1, 2), random_scores(spec), rotate=False)
    prune(model, plan, tmp_path / "small")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "small"))
    decays = [name for name in before if re.search("slope_rate|_decay", name)]
    assert len(decays) == 4 * spec.letters.count("L") == 8
    assert all(torch.equal(before[name], after[name]) for name in decays)
