"""Mixtures of experts: what routers need, which layers have experts, and layers behind the last."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from family_sizes import FAMILY_SIZES
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.engines.vllm import pool
from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.workload import Engine, Workload
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec, spec_of
from minitron.search.search_steps import LatticeOptions, default_sizes


def config(model_type: str, **changed: Any) -> dict[str, Any]:
    return FAMILY_SIZES[model_type][0] | {"model_type": model_type} | changed


@pytest.mark.parametrize("key", ["num_experts_per_tok", "n_group", "topk_group"])
def test_a_router_chooses_one_or_more(key: str) -> None:
    with pytest.raises(MinitronError, match=f"{key} is -2; it must be 1 or more"):
        spec_of(config("deepseek_v3", **{key: -2}))


def test_a_router_keeps_as_many_experts_as_its_groups_need() -> None:
    """Two of eight experts, from one of two groups: four must stay, though a token needs two."""
    spec = spec_of(config("deepseek_v3"))
    assert (spec.experts_per_token, spec.least("expert")) == (2, 4)
    with pytest.raises(MinitronError, match="a token cannot choose 2 experts from 1 of 2 groups of 1"):
        spec.resized({"n_routed_experts": 2})
    sizes = default_sizes(spec, "expert", LatticeOptions(most={"expert": 0.9}))
    assert sizes == (8, 6, 4)
    # A group is ranked by its two best experts even where a token takes one.
    assert spec_of(config("deepseek_v3", num_experts_per_tok=1)).least("expert") == 4
    assert spec_of(config("deepseek_v2", num_experts_per_tok=1)).least("expert") == 2


def test_windows_beside_mixtures_of_experts() -> None:
    """Qwen3-MoE slides everywhere or nowhere, Qwen2-MoE in every other one of its first layers."""
    asked = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 6}
    assert spec_of(config("qwen3_moe", **asked)).letters == "eseeee"
    assert spec_of(config("qwen3_moe", num_hidden_layers=6)).letters == "E-EEEE"
    qwen2 = spec_of(config("qwen2_moe", **asked, max_window_layers=4))
    assert qwen2.letters == "e-eEEE"
    small = qwen2.resized({}, (1, 2, 5))
    assert small.letters == "-eE" and small.config["layer_types"][1] == "sliding_attention"


def test_delta_nets_and_attention_with_experts_or_an_mlp() -> None:
    """Qwen3-Next: what mixes tokens and what follows it go by keys of their own."""
    spec = spec_of(config("qwen3_next", num_hidden_layers=8, layer_types=None, decoder_sparse_step=2))
    assert spec.letters == "lLl*lLl*"
    small = spec.resized({}, (1, 2, 3))
    assert small.letters == "Ll*" and small.config["mlp_only_layers"] == [1]
    assert spec_of(config("qwen3_next", mlp_only_layers=[2])).letters == "LL-L"


def test_layers_in_chunks_and_with_experts_are_written_out_when_some_of_them_go() -> None:
    """Llama 4 Maverick's layout: experts in every second layer, all tokens in every fourth."""
    spec = spec_of(config("llama4_text", num_hidden_layers=8, interleave_moe_layer_step=2, no_rope_layers=[]))
    assert spec.letters == "sesEsesE"
    small = spec.resized({}, (1, 2, 3, 6)).config
    assert small["layer_types"] == ["chunked_attention", "chunked_attention", "full_attention", "chunked_attention"]
    assert small["no_rope_layers"] == [1, 1, 0, 1] and small["moe_layers"] == [0, 2]
    assert spec_of(small).letters == "esEs"
    assert CONFIG_MAPPING["llama4_text"](**spec.config).layer_types == [
        "full_attention" if letter == "E" else "chunked_attention" for letter in spec.letters
    ]


def test_vllm_keeps_a_chunk_and_what_two_steps_add() -> None:
    engine = Engine("vllm", cuda_graphs=False, prefix_caching=False, max_num_batched_tokens=32)
    workload = Workload(1000, engine=engine)
    spec = spec_of(config("llama4_text", attention_chunk_size=64))
    keep = kept(spec, workload, spec.sizes, spec.kind_counts())
    assert {one.window: (one.attention, one.tokens) for one in keep.caches} == {None: (1, 1000), 64: (3, 64)}
    # 64 + 2 x 32 tokens are 8 blocks of 16, for a chunk begins where a block does (vLLM's ChunkedLocalAttentionSpec);
    # the three layers that keep them share block tables with one layer's 63 of all tokens.
    assert int(pool(workload, keep).block_size) == 16
    assert int(pool(workload, keep).per_sequence) == 63 + 3 * 8


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe", "glm4_moe_lite"])
def test_layers_that_predict_more_tokens_are_left_out_and_told(model_type: str, tmp_path: Path) -> None:
    """Released checkpoints hold them behind the last layer, as transformers does not."""
    sizes = FAMILY_SIZES[model_type][0] | {"num_nextn_predict_layers": 1}
    sizes.pop("num_mtp_layers", None)
    model = tiny_models.save_family(tmp_path / "model", model_type, **sizes)
    tensors = load_file(model / "model.safetensors")
    own = {name: value for name, value in tensors.items() if ".layers.3." in name}
    block = {name.replace(".layers.3.", ".layers.4."): value.clone() for name, value in own.items()}
    block |= {f"model.layers.4.{name}.weight": torch.ones(32) for name in ("enorm", "hnorm", "shared_head.norm")}
    save_file(tensors | block, model / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(model)
    Checkpoint(model).check(spec)
    prune(model, Plan(spec.fingerprint, {}, tuple(range(len(spec.layers)))), tmp_path / "small")
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == tensors.keys()
    told = json.loads((tmp_path / "small" / "minitron.json").read_text())["note"]["left out"]
    assert told == f"{len(block)} x layers of multi-token prediction"
    load_model(model)
    load_model(tmp_path / "small")
    # A layer further behind is none of them.
    assert spec.extra("model.layers.5.enorm.weight") is None and spec.extra("model.layers.3.enorm.weight") is None
