"""Layers of one kind that differ in size (nemotron_h_puzzle), by their config alone: each against transformers' own
layer of those sizes, as transformers has no model of several."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import random_scores
from family_sizes.base import HYBRID_SIZES, LAYERS
from safetensors.torch import load_file, save_file
from test_conformance import parts
from tiny_models import save_family
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from cli.app import run
from minitron.cut.plan import make_plan
from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.footprint import footprint
from minitron.memory.loads import load_of
from minitron.memory.workload import Workload
from minitron.model.checkpoint import Checkpoint
from minitron.model.families import FAMILIES
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec, spec_of

TYPE = "nemotron_h_puzzle"
WORDS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}

BLOCKS: list[tuple[str, dict[str, Any]]] = [
    ("M", {}),
    ("E", {"moe_intermediate_size": 16, "num_experts_per_tok": 1}),
    ("*", {"num_key_value_heads": 1}),
    ("E", {"moe_intermediate_size": 24, "num_experts_per_tok": 3, "n_routed_experts": 5}),
    ("-", {"intermediate_size": 40}),
    ("M", {"ssm_state_size": 8, "mamba_num_heads": 4}),
    ("*", {"num_key_value_heads": 4, "head_dim": 8}),
    ("E", {"moe_intermediate_size": 16, "num_experts_per_tok": 1, "n_group": None}),
    ("E", {"moe_intermediate_size": 8, "moe_latent_size": 12, "moe_shared_expert_intermediate_size": 28}),
    ("-", {}),
]
"""Layer by layer its letter, and what config.json says of it alone."""

MTP_BLOCKS = [{"block_type": "attention"}, {"block_type": "moe", "moe_intermediate_size": 20, "num_experts_per_tok": 4}]


def config(**changed: Any) -> dict[str, Any]:
    blocks = [{"block_type": WORDS[letter]} | own for letter, own in BLOCKS]
    return HYBRID_SIZES | {"model_type": TYPE, "num_hidden_layers": None, "block_configs": blocks} | changed


def alone(letter: str, own: dict[str, Any]) -> NemotronHForCausalLM:
    """transformers' model of one such layer, on the meta device."""
    said = {key: value for key, value in own.items() if value is not None}
    with torch.device("meta"):
        return NemotronHForCausalLM(NemotronHConfig(**HYBRID_SIZES | {"layers_block_type": [LAYERS[letter]]} | said))


def numbers(letter: str, own: dict[str, Any]) -> tuple[int, int]:
    """(those of one layer, those of them that a token does not use)."""
    model = alone(letter, own)
    layer = model.model.layers[0]
    count = sum(tensor.numel() for tensor in layer.state_dict().values())
    if letter != "E":
        return count, 0
    experts = layer.mixer.experts
    each = (experts.up_proj.numel() + experts.down_proj.numel()) // model.config.n_routed_experts
    return count, each * (model.config.n_routed_experts - model.config.num_experts_per_tok)


def outside() -> int:
    """The embedding, the output layer and the norm before it."""
    return (2 * HYBRID_SIZES["vocab_size"] + 1) * HYBRID_SIZES["hidden_size"]


def test_every_layer_has_the_parameters_of_transformers_layer() -> None:
    found = spec_of(config()).parameters()
    layers = [numbers(letter, own) for letter, own in BLOCKS]
    assert found.total == outside() + sum(count for count, _ in layers)
    assert found.active == found.total - sum(idle for _, idle in layers)
    assert found.mtp == 0


def test_layers_of_which_the_config_says_the_same_are_one_kind() -> None:
    spec = spec_of(config())
    assert spec.letters == "".join(letter for letter, _ in BLOCKS)
    assert spec.layers == (
        *("mamba_1", "moe_1", "attention_1", "moe_2", "mlp_1"),
        *("mamba_2", "attention_2", "moe_1", "moe_3", "mlp_2"),
    )
    # Blocks that say one thing of all layers make a nemotron_h of it.
    blocks = [{"block_type": WORDS[letter], "moe_intermediate_size": 16} for letter in "ME*E"]
    same = spec_of(config(block_configs=blocks))
    plain = HYBRID_SIZES | {"model_type": "nemotron_h", "hybrid_override_pattern": "ME*E", "moe_intermediate_size": 16}
    assert same.layers == spec_of(plain).layers and same.sizes == spec_of(plain).sizes
    assert same.parameters() == spec_of(plain).parameters()


def test_the_prediction_block_has_sizes_of_its_own() -> None:
    hidden = HYBRID_SIZES["hidden_size"]
    ahead = numbers("*", {})[0] + numbers("E", {"moe_intermediate_size": 20})[0]
    around = 2 * hidden + 2 * hidden**2 + hidden
    spec = spec_of(config(num_nextn_predict_layers=1, mtp_block_configs=MTP_BLOCKS))
    assert spec.parameters().mtp == ahead + around
    assert spec.parameters().total == spec_of(config()).parameters().total
    # Without blocks of its own the sizes are the config's.
    bare = spec_of(config(num_nextn_predict_layers=1))
    assert bare.parameters().mtp == numbers("*", {})[0] + numbers("E", {})[0] + around
    drafting = Workload(50, weights="bf16", speculative_tokens=2)
    assert footprint(spec, drafting).mtp_weights == 2 * spec.parameters().mtp
    # Its attention layer has the two KV heads of the config.
    more = footprint(spec, drafting).kv_cache - footprint(spec, Workload(50, weights="bf16")).kv_cache
    assert more == 50 * 2 * 2 * HYBRID_SIZES["head_dim"] * 2


def test_every_layer_keeps_what_transformers_cache_keeps(tmp_path: Path) -> None:
    tokens, keys_values, conv, state = 20, 0, 0, 0
    for place, (letter, own) in enumerate(BLOCKS):
        if letter in "E-":
            continue
        # Without attention transformers' cache counts no tokens.
        sizes = HYBRID_SIZES | {"layers_block_type": [LAYERS[letter], LAYERS["*"]]} | own
        folder = save_family(tmp_path / str(place), "nemotron_h", **sizes)
        model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
        with torch.no_grad():
            cache = model(torch.arange(tokens)[None] + 3, use_cache=True).past_key_values.layers[0]
        if letter == "*":
            keys_values += 4 * (cache.keys.numel() + cache.values.numel())
        else:
            # transformers keeps one input more than the convolution needs.
            conv += sum(4 * held[..., 1:].numel() for held in parts(cache.conv_states))
            state += sum(4 * held.numel() for held in parts(cache.recurrent_states))
    spec = spec_of(config())
    found = footprint(spec, Workload(tokens, 1, "fp32", "fp32", "fp32", "fp32"))
    assert (found.kv_cache, found.conv_state, found.ssm_state) == (keys_values, conv, state)


def test_a_window_is_that_of_the_layers_that_have_one() -> None:
    blocks = [{"block_type": "attention", "sliding_window": window} for window in (None, 8, 8, 16)]
    spec = spec_of(config(block_configs=blocks))
    keep = kept(spec, Workload(50, kv="bf16"), spec.sizes, spec.kind_counts())
    assert [(one.attention, one.window) for one in keep.caches] == [(1, None), (2, 8), (1, 16)]
    assert keep.kv_bytes == (50 + 2 * 8 + 16) * 2 * 2 * HYBRID_SIZES["head_dim"] * 2
    assert [window.tokens for window in load_of(spec, Workload(50)).windows] == [8, 16]


@pytest.mark.parametrize("weights", ["bf16", "nvfp4"])
def test_a_load_is_the_footprint_without_the_embedding(weights: str) -> None:
    spec, workload = spec_of(config()), Workload(50, weights=weights)
    load, found = load_of(spec, workload), footprint(spec, workload)
    groups = (load.dense, load.head, *load.experts)
    embedding = HYBRID_SIZES["vocab_size"] * HYBRID_SIZES["hidden_size"]
    assert sum(group.bytes for group in groups) + 2 * embedding == found.weights
    assert sum(sum(group.parameters.values()) for group in groups) + embedding == spec.parameters().total
    assert {(one.num_experts, one.experts_per_token) for one in load.experts} == {(6, 1), (5, 3), (6, 2)}
    assert sum(sum(one.parameters.values()) * (1 - one.share) for one in load.experts) == pytest.approx(
        spec.parameters().total - spec.parameters().active
    )


def test_gpus_hold_a_share_of_each_layer() -> None:
    blocks = [{"block_type": "attention", "num_key_value_heads": heads} for heads in (1, 4)]
    one, two = (Workload(64, weights="bf16", kv="bf16", tensor_parallel=gpus) for gpus in (1, 2))
    spec, width = spec_of(config(block_configs=blocks)), HYBRID_SIZES["head_dim"]
    # The one KV head is copied, of the four each GPU holds two.
    assert footprint(spec, one).kv_cache == 64 * (1 + 4) * 2 * width * 2
    assert footprint(spec, two).kv_cache == 64 * (1 + 2) * 2 * width * 2
    with pytest.raises(MinitronError, match="num_key_value_heads = 3 cannot be split among 2 GPUs"):
        load_of(
            spec_of(config(num_attention_heads=12, block_configs=[*blocks, blocks[0] | {"num_key_value_heads": 3}])),
            two,
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose layers transformers wrote one by one."""
    tensors: dict[str, torch.Tensor] = {}
    for place, (letter, own) in enumerate(BLOCKS):
        said = {key: value for key, value in own.items() if value is not None}
        sizes = HYBRID_SIZES | {"layers_block_type": [LAYERS[letter]]} | said
        for name, tensor in load_file(
            save_family(tmp_path / str(place), "nemotron_h", **sizes) / "model.safetensors"
        ).items():
            tensors[re.sub(r"\.layers\.0\.", f".layers.{place}.", name)] = tensor
    model = tmp_path / "model"
    model.mkdir()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps(config(torch_dtype="float32")), encoding="utf-8")
    return model


def test_a_folder_is_held_against_the_sizes_of_each_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = read_spec(folder)
    Checkpoint(folder).check(spec)
    assert run(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["total"] == Checkpoint(folder).num_parameters
    assert told["weight_bytes"] == 4 * told["parameters"]["total"]
    (alike,) = (one for one in told["differing"] if one["layers"] == [1, 7])
    assert alike["kind"] == "moe"
    sizes = {"moe_intermediate_size": 16, "num_experts_per_tok": 1, "n_routed_experts": 6, "moe_latent_size": None}
    assert alike["config"] == sizes | {"moe_shared_expert_intermediate_size": 40}
    assert run(["inspect", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "expert_ffn moe_intermediate_size 8 to 24" in shown and "moe 1, 7" in shown


@pytest.mark.parametrize(
    ("place", "changed", "why"),
    [
        (1, {"moe_intermediate_size": 24}, r"layers\.1\.mixer\.experts\.0\.(up|down)_proj\.weight has the shape"),
        (3, {"n_routed_experts": 6}, r"layers\.3\.mixer\.gate.* has the shape"),
        (6, {"num_key_value_heads": 2}, r"layers\.6\.mixer\.[kv]_proj\.weight has the shape"),
        (8, {"moe_latent_size": None}, r"layers\.8\.mixer\.\w+\.*"),
    ],
)
def test_a_layer_of_another_size_is_refused_by_name(
    folder: Path, place: int, changed: dict[str, Any], why: str
) -> None:
    blocks = config()["block_configs"]
    blocks[place] = blocks[place] | changed
    (folder / "config.json").write_text(json.dumps(config(block_configs=blocks)), encoding="utf-8")
    with pytest.raises(MinitronError, match=why):
        Checkpoint(folder).check(read_spec(folder))


def test_what_cannot_be_done_is_refused_by_name(
    folder: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = read_spec(folder)
    layers = tuple(range(len(spec.layers)))
    for key, axes in spec.keys.items():
        with pytest.raises(MinitronError, match=f"{key} cannot be cut in a {TYPE} model, as its layers differ in size"):
            make_plan(spec, {key: spec.sizes[axes[0]] // 2}, layers, random_scores(spec))
    with pytest.raises(MinitronError, match=f"no layer of a {TYPE} model can be left out, as its layers differ"):
        make_plan(spec, {}, layers[1:], random_scores(spec))
    data = ["--data", str(short_text)]
    for asked, why in (
        (["compress", str(folder), *data, "--gpu", "A10G", "-o", str(tmp_path / "run")], "can be cut, as its layers"),
        (["plan", str(folder), "--gpu", "A10G", "--context", "64", "--layers", "9"], "9 layers cannot be kept"),
        (["plan", str(folder), "--gpu", "A10G", "--context", "64", "--lattice", "hidden_size=16"], "cannot be cut in"),
    ):
        assert run(asked) == 2
        assert why in " ".join(capsys.readouterr().err.split())
    assert run(["plan", str(folder), "--gpu", "A10G", "--context", "64", "--html", str(tmp_path / "plan.html")]) == 0


def test_transformers_has_every_other_type() -> None:
    assert {name for name, family in FAMILIES.items() if family.blocks} == {TYPE}
    assert {name for name in FAMILIES if name not in CONFIG_MAPPING_NAMES} == {TYPE}


def test_a_nemotron_h_with_blocks_is_read_alike() -> None:
    assert spec_of(config(model_type="nemotron_h")).parameters() == spec_of(config()).parameters()
    assert spec_of(config(model_type="nemotron_h", block_configs=None, hybrid_override_pattern="M*")).letters == "M*"


MOE = {"block_type": "moe"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"block_configs": None}, "has no block_configs"),
        ({"block_configs": {"0": MOE}}, "block_configs is not a list of one object a layer"),
        ({"block_configs": [{"attention": {"no_op": True}}]}, "block_configs says no block_type of layer 0"),
        ({"block_configs": [{"block_type": "no_op"}]}, "block_configs has the layer kind 'no_op'"),
        (
            {"block_configs": [MOE], "layers_block_type": ["mamba"]},
            "describes the layers E, and layers_block_type says",
        ),
        ({"block_configs": [MOE], "num_hidden_layers": 2}, "describes the layers E, and num_hidden_layers says"),
        (
            {"block_configs": [MOE, MOE | {"hidden_size": 64}]},
            "hidden_size differs from layer to layer, and all layers",
        ),
        (
            {"block_configs": [MOE, MOE | {"num_experts_per_tok": 7}]},
            "num_experts_per_tok = 7 is more than the 6 experts",
        ),
        ({"block_configs": [MOE, MOE | {"moe_intermediate_size": 0}]}, "moe_intermediate_size is 0; give at least 1"),
        (
            {"block_configs": [{"block_type": "attention"}, {"block_type": "attention", "num_key_value_heads": 3}]},
            "num_attention_heads = 4 does not divide into num_key_value_heads = 3 equal groups",
        ),
        (
            {"block_configs": [MOE], "num_nextn_predict_layers": 1, "mtp_block_configs": [3]},
            "mtp_block_configs is not a list of one object a layer",
        ),
    ],
)
def test_a_broken_config_is_refused_in_one_sentence(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        spec_of(config(**changed)).parameters()


def test_what_an_older_name_of_a_tensor_was_is_known(folder: Path) -> None:
    spec: ModelSpec = read_spec(folder)
    assert spec.find("backbone.layers.3.mixer.experts.4.up_proj.weight")[1] == {"layer": 3, "expert": 4}
    with pytest.raises(MinitronError, match="no rule for the tensor"):
        spec.find("backbone.layers.3.mixer.experts.5.up_proj.weight")
