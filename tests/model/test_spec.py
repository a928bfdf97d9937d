"""A model as data: counted against transformers on the meta device, read in every dialect, refused when broken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_sizes.base import HYBRID_SIZES, LLAMA_SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.families.layouts import keep_layers, read_layout
from minitron.model.spec import read_spec, spec_of
from minitron.search.lattice import default_sizes

HYBRID = HYBRID_SIZES | {"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*-ME*", "use_conv_bias": True}
LLAMA = LLAMA_SIZES | {"model_type": "llama"}

CONFIGS: dict[str, dict[str, Any]] = {
    "hybrid": HYBRID,
    "dense": HYBRID | {"hybrid_override_pattern": "M-*-"},
    "latent": HYBRID | {"moe_latent_size": 12},
    "biases": HYBRID | {"use_bias": True, "mlp_bias": True, "hybrid_override_pattern": "M-*-"},
    "no convolution bias": HYBRID | {"use_conv_bias": False},
    "llama": LLAMA | {"tie_word_embeddings": False},
    "llama tied": LLAMA | {"tie_word_embeddings": True},
    "llama biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": LLAMA | {"model_type": "mistral", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_shapes_are_those_that_transformers_builds(name: str) -> None:
    spec = spec_of(CONFIGS[name])
    config = dict(CONFIGS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    built |= {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if "correction_bias" in name}
    ours: dict[str, tuple[int, ...]] = {}
    for tensor in spec.expected():
        if "expert" in tensor.index:
            # In memory the experts of a layer are one tensor.
            fused = tensor.name.replace(f"experts.{tensor.index['expert']}.", "experts.").removesuffix(".weight")
            ours[fused] = (spec.sizes["expert"], *tensor.shape)
        else:
            ours[tensor.name] = tensor.shape
    assert ours == built
    assert spec.parameters().total == sum(torch.Size(shape).numel() for shape in built.values())


def test_only_the_experts_of_a_token_are_active() -> None:
    spec = spec_of(HYBRID)
    idle = spec.letters.count("E") * (6 - 2) * 2 * 24 * 32
    assert spec.parameters().active == spec.parameters().total - idle


DIALECTS: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"hybrid_override_pattern": "M*-E"}, "M*-E"),
    "released words": ({"layers_block_type": ["mamba", "attention", "mlp", "moe"]}, "M*-E"),
    "transformers 5": ({"layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"]}, "M*-E"),
    "layer_types": ({"layer_types": ["mamba", "full_attention"]}, "M*"),
    "Bamba": ({"attn_layer_indices": [1, 3], "num_hidden_layers": 5}, "M*M*M"),
    "Jamba": ({"attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 6}, "M*MM*M"),
    "Qwen3-Next": ({"full_attention_interval": 3, "num_hidden_layers": 7}, "MM*MM*M"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_of_the_layout_is_read_and_kept(name: str) -> None:
    config, letters = DIALECTS[name]
    assert read_layout(config) == letters
    kept = tuple(range(1, len(letters)))
    edited = json.loads(json.dumps(config))
    keep_layers(edited, kept)
    assert read_layout(edited) == letters[1:]
    whole = json.loads(json.dumps(config))
    keep_layers(whole, tuple(range(len(letters))))
    assert whole == config


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gpt5"}, "does not support; `minitron inspect --list`"),
        ({"hybrid_override_pattern": "MX"}, "the letter 'X'"),
        ({"hybrid_override_pattern": ""}, "empty"),
        ({"hybrid_override_pattern": "MEM", "num_hidden_layers": 4}, "describes 3 layers and num_hidden_layers is 4"),
        ({"hybrid_override_pattern": None}, "names no layer layout"),
        ({"layers_block_type": ["mamba", "rwkv"]}, "layer kind 'rwkv'"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "big"}, "must be a whole number"),
        ({"hidden_size": True}, "must be a whole number"),
        ({"mamba_num_heads": 7}, "does not divide"),
        ({"num_experts_per_tok": 9}, "more than the 6 experts"),
    ],
)
def test_a_broken_config_is_refused_in_one_sentence(change: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        spec_of(HYBRID | change)


def test_a_llama_is_only_cut_to_what_transformers_loads() -> None:
    spec = spec_of(LLAMA)
    with pytest.raises(MinitronError, match="hidden_size = 30 is no multiple of num_attention_heads = 4"):
        spec.resized({"hidden_size": 30})
    with pytest.raises(Exception, match="not a multiple"):
        AutoConfig.for_model("llama", **LLAMA_SIZES | {"hidden_size": 30})
    smollm2 = spec_of(LLAMA | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
    assert default_sizes(smollm2, "hidden") == (576, 504, 432)


def test_a_dense_config_has_no_experts_whatever_its_defaults_say() -> None:
    spec = spec_of(HYBRID | {"hybrid_override_pattern": "M-*-"})
    assert "n_routed_experts" not in spec.named_sizes
    assert not any("moe" in component for component in spec.parameters().by_component)


def test_a_missing_prediction_block_is_no_damage_but_half_of_one_is(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    with_block = spec_of(dict(spec.config) | {"num_nextn_predict_layers": 1})
    checkpoint = Checkpoint(tiny_hybrid)
    checkpoint.check(with_block)
    header = checkpoint.headers["backbone.norm_f.weight"]
    checkpoint.headers["mtp.layers.0.enorm.weight"] = header
    with pytest.raises(MinitronError, match=r"tensors are missing, the first mtp\."):
        checkpoint.check(with_block)


def test_resizing_writes_every_dialect_of_a_key() -> None:
    spec = spec_of(HYBRID | {"attention_head_dim": 12})
    config = spec.resized({"head_dim": 8, "mamba_num_heads": 4}).config
    assert config["head_dim"] == config["attention_head_dim"] == 8
    assert spec.config["head_dim"] == 12
    renamed = dict(HYBRID)
    renamed["mamba_n_groups"] = renamed.pop("n_groups")
    assert spec_of(renamed).named_sizes["mamba_n_groups"] == 2


@pytest.mark.parametrize(
    ("dtype", "each"), [("half", 2), ("torch.float16", 2), ("float", 4), ("torch.float32", 4), (None, 2)]
)
def test_weights_are_counted_in_the_dtype_that_the_config_names(dtype: str | None, each: int) -> None:
    spec = spec_of({"model_type": "llama", "dtype": dtype} | LLAMA_SIZES)
    assert footprint(spec, workload_of(spec, 64)).weights == spec.parameters().total * each


@pytest.mark.parametrize("dtype", ["float64", "double", "float8_e4m3fn", "uint8"])
def test_a_dtype_that_no_format_has_is_named(dtype: str) -> None:
    spec = spec_of({"model_type": "llama", "dtype": dtype} | LLAMA_SIZES)
    with pytest.raises(MinitronError, match=r"dtype is '\w+', in which Minitron counts no model; write one of float32"):
        workload_of(spec, 64)
