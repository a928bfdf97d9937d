"""What a family's table says beside its tensors: absent keys, refused keys, tensors beside the model's own."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from family_sizes import FAMILY_SIZES
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.workload import Workload
from minitron.model.axes import Axis
from minitron.model.checkpoint import Checkpoint
from minitron.model.families import FAMILIES, Cache, Extra
from minitron.model.families.family import value_of
from minitron.model.families.layer_lists import attention_types
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec, spec_of
from pipeline import inspect

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "families_facts.json").read_text()
)


def whole(spec: ModelSpec) -> Plan:
    """The plan that keeps everything."""
    return Plan(spec.fingerprint, {}, tuple(range(len(spec.layers))))


def config(model_type: str, **changed: Any) -> dict[str, Any]:
    return FAMILY_SIZES[model_type][0] | {"model_type": model_type} | changed


def test_an_absent_key_means_what_transformers_class_says() -> None:
    sizes = {key: value for key, value in config("gemma3_text").items() if key != "tie_word_embeddings"}
    assert spec_of(sizes).is_tied and not spec_of(sizes | {"tie_word_embeddings": False}).is_tied
    del sizes["head_dim"], sizes["layer_types"]
    model = spec_of(sizes | {"num_hidden_layers": 7, "num_key_value_heads": 1})
    assert model.sizes["head_dim"] == 256 and model.letters == "sssss*s"
    # A window that is absent is Mistral's own, one that is null is none.
    mistral = {key: value for key, value in config("mistral").items() if key != "sliding_window"}
    windows = []
    for found in (mistral, mistral | {"sliding_window": None}):
        spec = spec_of(found)
        (one,) = kept(spec, Workload(10_000), spec.sizes, spec.kind_counts()).caches
        windows.append((one.window, one.tokens))
    assert windows == [(4096, 4096), (None, 10_000)]


@pytest.mark.parametrize(
    ("model_type", "changed", "why"),
    [
        ("nemotron_h", {"per_layer_config": {"0": {}}}, "per_layer_config is .*sizes that differ from layer to layer"),
        ("nemotron_h", {"block_configs": [{}, {}]}, "block_configs says no block_type of layer 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True.*bidirectional"),
        ("gemma3_text", {"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0; logits need a positive"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1; it must be a positive whole number or null"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention"] * 3},
            "layer_types does not have one entry for each",
        ),
        ("gemma3_text", {"layer_types": ["chunked_attention"] * 4}, "layer_types has the kind 'chunked_attention'"),
        ("llama", {"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ("hunyuan_v1_moe", {"moe_topk": [2, 2, 1, 2]}, "moe_topk differs from layer to layer"),
        ("hunyuan_v1_moe", {"num_experts": [6, 6, 6, 6]}, r"num_experts is \[6, 6, 6, 6\]; it must be a whole number"),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval is not 1"),
        ("glm_moe_dsa", {"index_topk_freq": 4}, "layers that share the tokens an earlier layer chose"),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared", "full", "full"]}, "layers that share the tokens"),
        ("deepseek_v32", {"q_lora_rank": None}, "config.json has no q_lora_rank; a deepseek_v32 model"),
        ("ministral", {"sliding_window": None}, "sliding_window gives no number, .*in every model of this type"),
        ("ministral", {"head_dim": None}, "config.json has no head_dim; a ministral model"),
        (
            "smollm3",
            {"layer_types": ["sliding_attention"] * 4},
            "sliding_window gives no number, .*'sliding_attention'",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers does not have one entry for each of the 4 layers"),
        ("olmo3", {"sliding_window": None}, "sliding_window gives no number"),
        ("afmoe", {"sliding_window": None}, "sliding_window is null, and transformers requires one for afmoe models"),
        ("minimax", {"layer_types": ["sliding_attention"] * 3}, "layer_types has the kind 'sliding_attention'"),
        ("exaone4", {"sliding_window": None}, "sliding_window is null and there is no layer_types"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern is 'LLLG'; it must be a whole number"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; transformers knows greedy, group_lim"),
        ("deepseek_v2", {"num_attention_heads": 8}, "num_attention_heads = 8 and num_key_value_heads = 4 differ"),
        ("nemotron_h_omni", {"audio_config": 8}, "audio_config is 8, not an object"),
        ("gemma3", {"vision_config": [8]}, "vision_config is .8., not an object"),
        (
            "deepseek_v2",
            {"num_attention_heads": 6, "num_key_value_heads": 6},
            "hidden_size = 32 is no multiple of num_attention_heads = 6",
        ),
        ("deepseek_v3", {"n_group": 3}, "n_routed_experts = 8 does not divide into the 3 equal groups of n_group"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "a token cannot choose 5 experts from 1 of 2 groups of 4"),
        ("deepseek_v3", {"topk_group": 3}, "a token cannot choose 2 experts from 3 of 2 groups of 4"),
        ("llama4_text", {"attention_chunk_size": None}, "attention_chunk_size is null, and transformers requires one"),
        ("llama4_text", {"no_rope_layers": [1, 0]}, "no_rope_layers does not have one entry for each of the 4 layers"),
        ("llama4_text", {"moe_layers": "0"}, "moe_layers is not a list of layer numbers"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "mlp_layer_types does not say dense or sparse for each"),
        ("bamba", {"mamba_n_heads": 6}, "mamba_n_heads \\* mamba_d_head = 48 and mamba_expand \\* hidden_size = 64"),
        ("lfm3", {"sliding_window": None}, "sliding_window is null, and some layers are sliding_attention"),
        ("lfm2_moe", {"layer_types": None}, "config.json has no layer_types"),
        ("bamba", {"attn_layer_indices": "2"}, "attn_layer_indices is not a list of layer numbers"),
    ],
)
def test_what_the_code_cannot_express_is_refused_by_name(model_type: str, changed: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        spec = spec_of(config(model_type, **changed))
        kept(spec, Workload(16), spec.sizes, spec.kind_counts())


def test_a_pattern_of_layers_is_written_out_when_some_of_them_go() -> None:
    sizes = {key: value for key, value in config("gemma3_text").items() if key != "layer_types"}
    spec = spec_of(sizes | {"num_hidden_layers": 12, "sliding_window_pattern": 3})
    assert spec.letters == "ss*ss*ss*ss*"
    small = spec.resized({}, (1, 2, 5, 6, 11))
    assert small.letters == "s**s*" and small.config["layer_types"] == attention_types(small.config)
    assert "layer_types" not in spec.resized({}, tuple(range(12))).config
    # So is which layers have no rotary embeddings.
    smollm = spec_of(config("smollm3", num_hidden_layers=8)).resized({}, (1, 3, 6, 7))
    assert smollm.config["no_rope_layers"] == [1, 0, 1, 0]
    moe = spec_of(config("qwen3_moe", mlp_only_layers=[], decoder_sparse_step=2, num_hidden_layers=6))
    assert moe.letters == "-E-E-E"
    assert moe.resized({}, (1, 2, 3)).letters == "E-E"


def said(row: Axis, model: PreTrainedConfig) -> int | None:
    """What an axis's row says of a config without its keys."""
    config = {key: value for key, value in model.to_dict().items() if key not in row.keys}
    return row.default(config) if callable(row.default) else row.default


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if not family.blocks])
def test_an_absent_key_means_what_the_class_of_the_config_says(model_type: str) -> None:
    family, model = FAMILIES[model_type], CONFIG_MAPPING[model_type]()
    # Of models whose layers differ transformers asks whether one means what stands outside the layers.
    model.allow_global_per_layer_attribute_access = True
    keys = {
        re.split("[!=]", key.removeprefix("!"))[0]
        for rules in family.rules.values()
        for rule in rules
        for key in rule.when.split()
    }
    keys |= {
        key for row in family.axes.values() for key in (row.least_key, row.equal_groups_key, row.chosen_groups_key)
    }
    keys |= {"tie_word_embeddings", *family.defaults, *family.logits.keys} | {
        cache.window for cache in family.cache.values()
    }
    for key in sorted(keys - {""}):
        theirs = getattr(model, key, None)
        # A window that the class takes back where another key turns windows off.
        if key != "sliding_window" or theirs:
            assert (value_of({}, family.defaults, key) or None) == (theirs or None), key
    for row in family.axes.values():
        theirs = next((getattr(model, key) for key in row.keys if hasattr(model, key)), None)
        ours = said(row, model)
        # A key that must be there is never guessed; one that is None follows from others, which conformance tests.
        assert ours is None or theirs is None or ours == theirs, row.name


def test_kinds_that_keep_the_same_count_once() -> None:
    """A dense layer before mixtures of experts does not make all layers keep keys and values twice."""
    spec = spec_of(config("deepseek_v3"))
    keep = kept(spec, Workload(10), spec.sizes, spec.kind_counts())
    assert [one.layers for one in keep.caches] == [4]
    assert keep.kv_bytes == 4 * 10 * (16 + 8) * 2


def test_tensors_that_no_model_needs_are_left_out_and_told(tmp_path: Path) -> None:
    model = tiny_models.save_llama(tmp_path / "model", tied=True)
    tensors = load_file(model / "model.safetensors")
    more = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(4)}
    more["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | more, model / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(model)
    Checkpoint(model).check(spec)
    result = prune(model, whole(spec), tmp_path / "small")
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == tensors.keys()
    embedding = tensors["model.embed_tokens.weight"].numel()
    found = inspect(model)
    assert found.mtp == 0 and list(found.extras.values()) == [embedding, 4 * 6] and len(found.to_json()["extras"]) == 2
    told = json.loads((tmp_path / "small" / "minitron.json").read_text())["note"]["left out"]
    assert "4 x rotary frequencies" in told and "1 x copy of the tied embedding" in told
    assert result.extras == {"left out": told}
    load_model(model)
    # Of an untied model the output layer is its own.
    config_file = json.loads((model / "config.json").read_text())
    untied = spec_of(config_file | {"tie_word_embeddings": False})
    assert untied.extra("lm_head.weight") is None and spec.extra("lm_head.weight") is not None


def test_tensors_to_carry_along_are_copied_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = Extra(r"vision_tower\..*", "the vision tower", carried=True)
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], extras=(vision,)))
    model = tiny_models.save_llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tower = {"vision_tower.patch.weight": torch.randn(7, 3), "vision_tower.norm.bias": torch.randn(5).bfloat16()}
    save_file(tensors | tower, model / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(model)
    result = prune(model, whole(spec), tmp_path / "small")
    found = load_file(tmp_path / "small" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tower.items())
    assert result.parameters == spec.parameters().total + 7 * 3 + 5
    assert result.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    note = json.loads((tmp_path / "small" / "minitron.json").read_text())["note"]
    assert note == {"copied as they are": "2 x the vision tower"}


def test_experts_stored_as_one_tensor_stay_one(tmp_path: Path) -> None:
    """Qwen3.5-MoE is released so, with a multi-token-prediction block; transformers writes its experts one by one."""
    sizes = FAMILY_SIZES["qwen3_5_moe_text"][0]
    apart = tiny_models.save_family(tmp_path / "apart", "qwen3_5_moe_text", **sizes)
    model = tiny_models.save_family(tmp_path / "one", "qwen3_5_moe_text", save_original_format=False, **sizes)
    tensors, others = load_file(model / "model.safetensors"), load_file(apart / "model.safetensors")
    experts = "model.layers.{}.mlp.experts."
    assert tensors[experts.format(1) + "gate_up_proj"].shape == (6, 48, 32)
    assert torch.equal(tensors[experts.format(1) + "down_proj"][2], others[experts.format(1) + "2.down_proj.weight"])
    # A block whose own experts are one tensor does not tell how the model's are stored.
    block = {"mtp.layers.0.mlp.experts.gate_up_proj": torch.ones(6, 48, 32), "mtp.fc.weight": torch.ones(32, 64)}
    save_file(others | block, apart / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors | block, model / "model.safetensors", metadata={"format": "pt"})
    small = {}
    for folder in (apart, model):
        spec = read_spec(folder)
        plan = Plan(spec.fingerprint, {"num_experts": 4}, (0, 2), {("expert", layer): np.arange(4) for layer in (0, 2)})
        result = prune(folder, plan, tmp_path / folder.name / "small")
        assert result.extras == {"left out": "2 x the multi-token-prediction block"}
        small[folder] = load_file(tmp_path / folder.name / "small" / "model.safetensors")
        load_model(tmp_path / folder.name / "small")
    assert read_spec(apart).parameters() == read_spec(model).parameters()
    assert torch.equal(
        small[model][experts.format(1) + "gate_up_proj"], tensors[experts.format(2) + "gate_up_proj"][:4]
    )
    assert torch.equal(
        small[apart][experts.format(1) + "3.down_proj.weight"], small[model][experts.format(1) + "down_proj"][3]
    )


def test_a_width_that_follows_from_its_key_is_written_as_it_stands_once_it_is_cut() -> None:
    """LFM2's FFN is two thirds of the key, rounded up; the released config says other sizes twice, too."""
    released = FACTS["LFM2-1.2B"]["config"] | {"model_type": "lfm2"}
    spec = spec_of(released)
    assert spec.sizes["ffn"] == 8192 and spec.named_sizes["block_ff_dim"] == 8192 and spec.is_tied
    assert spec.resized({"block_ff_dim": 8192}).config == released
    small = spec.resized({"block_ff_dim": 5000, "hidden_size": 1024, "num_attention_heads": 24}, (0, 2, 3, 5)).untied()
    told = small.config
    assert told["block_ff_dim"] == 5000 and told["block_auto_adjust_ff_dim"] is False
    assert told["block_dim"] == told["conv_dim"] == told["conv_dim_out"] == told["hidden_size"] == 1024
    assert told["num_heads"] == 24 and told["full_attn_idxs"] == [1, 3] and told["head_dim"] == 64
    theirs = CONFIG_MAPPING["lfm2"](**{key: value for key, value in told.items() if key != "model_type"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert sum(one.numel() for one in model.parameters()) == small.parameters().total
    assert not theirs.tie_word_embeddings
    with pytest.raises(MinitronError, match="block_ffn_dim_multiplier is None; it must be a positive number"):
        spec_of(released | {"block_ffn_dim_multiplier": None}).sizes  # noqa: B018 (read for what it raises)


def test_layers_counted_from_one_are_counted_anew() -> None:
    """Kimi Linear's released config, in which one object says all of its linear attention."""
    released = FACTS["Kimi-Linear-48B-A3B"]["config"] | {"model_type": "kimi_linear"}
    spec, nested = spec_of(released), "linear_attn_config."
    assert spec.letters == "lLLA" + "LLLA" * 5 + "LLA"
    sizes = {f"{nested}num_heads": 24, "num_experts": 192, "moe_intermediate_size": 512, "hidden_size": 2048}
    small = spec.resized(sizes, (0, 2, 3, 7, 26))
    told = small.config["linear_attn_config"]
    assert told == {
        "full_attn_layers": [3, 4, 5],
        "head_dim": 128,
        "kda_layers": [1, 2],
        "num_heads": 24,
        "short_conv_kernel_size": 4,
    }
    assert released["linear_attn_config"]["num_heads"] == 32 and "layer_types" not in small.config
    theirs = CONFIG_MAPPING["kimi_linear"](**{key: value for key, value in small.config.items() if key != "model_type"})
    assert [word[0] for word in theirs.layer_types] == ["l", "l", "f", "f", "f"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    numbers = [*model.parameters(), *(one for name, one in model.named_buffers() if name.endswith("correction_bias"))]
    assert sum(one.numel() for one in numbers) == small.parameters().total
    with pytest.raises(MinitronError, match=r"linear_attn_config\.kda_layers do not name the layers 1 to 27"):
        spec_of(released | {"linear_attn_config": told}).letters  # noqa: B018 (read for what it raises)


def test_a_family_that_contradicts_itself_is_refused_when_it_is_made() -> None:
    llama = FAMILIES["llama"]
    with pytest.raises(ValueError, match="no size is given for ffn"):
        replace(llama, axes={name: axis for name, axis in llama.axes.items() if name != "ffn"})
    with pytest.raises(ValueError, match="axes refer to kv_head, which has no row"):
        rules = {kind: tuple(rule for rule in own if "kv_head" not in rule.axes) for kind, own in llama.rules.items()}
        replace(llama, rules=rules, axes={name: axis for name, axis in llama.axes.items() if name != "kv_head"})
    with pytest.raises(ValueError, match="every kind of layer has a label"):
        replace(llama, kind_labels={})
    with pytest.raises(ValueError, match="channels and taps"):
        Cache(conv_channels="ffn")


def test_a_window_keeps_its_last_tokens_only_and_vllm_two_steps_more() -> None:
    from minitron.engines.vllm import pool
    from minitron.memory.workload import Engine

    spec = spec_of(config("gemma3_text", sliding_window=64))
    engine = Engine("vllm", cuda_graphs=False, prefix_caching=False, max_num_batched_tokens=32)
    workload = Workload(1000, engine=engine)
    keep = kept(spec, workload, spec.sizes, spec.kind_counts())
    token = 2 * 2 * 12 * 2
    assert {one.window: (one.attention, one.tokens) for one in keep.caches} == {None: (2, 1000), 64: (2, 64)}
    assert keep.kv_bytes == token * (2 * 1000 + 2 * 64)
    found = pool(workload, keep)
    # Two layers of each kind share a block table: 63 blocks of 16 tokens hold 1,000, and 64 - 1 + 2 x 32 = 127 tokens
    # are 8 blocks and one more (vLLM's SlidingWindowSpec, two steps under way).
    assert (int(found.block_size), int(found.page), int(found.group)) == (16, 16 * token, 2)
    assert int(found.per_sequence) == 63 + 9
