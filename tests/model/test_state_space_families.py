"""State-space models and hybrids: released configs as they are, sizes that follow from others, periods of layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import scored
from family_sizes import FAMILY_SIZES
from tiny_models import save_family
from transformers import AutoConfig, AutoModelForCausalLM

from minitron.engines.vllm import pool
from minitron.errors import MinitronError
from minitron.memory import caches
from minitron.memory.gpus import find_gpu
from minitron.memory.loads import load_of
from minitron.memory.roofline import estimate
from minitron.memory.workload import Engine, Workload
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, spec_of
from minitron.search.depth import depth_of, depths, match_pattern, mixes

RELEASED: dict[str, dict[str, Any]] = {
    # With the keys of state-spaces' own format beside transformers'.
    "mamba-130m-hf": {
        "architectures": ["MambaForCausalLM"],
        "bos_token_id": 0,
        "conv_kernel": 4,
        "d_inner": 1536,
        "d_model": 768,
        "eos_token_id": 0,
        "expand": 2,
        "fused_add_norm": True,
        "hidden_act": "silu",
        "hidden_size": 768,
        "intermediate_size": 1536,
        "layer_norm_epsilon": 1e-05,
        "model_type": "mamba",
        "n_layer": 24,
        "num_hidden_layers": 24,
        "pad_vocab_size_multiple": 8,
        "residual_in_fp32": True,
        "rms_norm": True,
        "ssm_cfg": {},
        "state_size": 16,
        "time_step_init_scheme": "random",
        "time_step_rank": 48,
        "torch_dtype": "float32",
        "use_bias": False,
        "use_conv_bias": True,
        "vocab_size": 50280,
    },
    # Its expand is not the one of its width.
    "falcon-mamba-7b": {
        "conv_kernel": 4,
        "expand": 16,
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "mixer_rms_eps": 1e-06,
        "model_type": "falcon_mamba",
        "num_hidden_layers": 64,
        "pad_token_id": 11,
        "state_size": 16,
        "tie_word_embeddings": False,
        "time_step_rank": 256,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "use_conv_bias": True,
        "use_falcon_mambapy": False,
        "vocab_size": 65024,
    },
    "Mamba-Codestral-7B": {
        "bos_token_id": 0,
        "chunk_size": 256,
        "conv_kernel": 4,
        "expand": 2,
        "head_dim": 64,
        "hidden_size": 4096,
        "model_type": "mamba2",
        "n_groups": 8,
        "norm_before_gate": True,
        "num_heads": 128,
        "num_hidden_layers": 64,
        "rms_norm": True,
        "state_size": 128,
        "tie_word_embeddings": False,
        "time_step_limit": [0.0, float("inf")],
        "time_step_rank": 256,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "use_conv_bias": True,
        "vocab_size": 32768,
    },
    "mamba2-130m-hf": {
        "conv_kernel": 4,
        "expand": 2,
        "head_dim": 64,
        "hidden_size": 768,
        "model_type": "mamba2",
        "n_groups": 1,
        "num_heads": 24,
        "num_hidden_layers": 24,
        "state_size": 128,
        "tie_word_embeddings": True,
        "vocab_size": 50288,
    },
    "Jamba-v0.1": {
        "attn_layer_offset": 4,
        "attn_layer_period": 8,
        "calc_logits_for_entire_prompt": False,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": 256,
        "mamba_expand": 2,
        "mamba_inner_layernorms": True,
        "mamba_proj_bias": False,
        "model_type": "jamba",
        "n_ctx": 262144,
        "num_attention_heads": 32,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_mamba_kernels": True,
        "vocab_size": 65536,
    },
    "Falcon-H1-0.5B": {
        "attention_bias": False,
        "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 0.9375,
        "embedding_multiplier": 5.656854249492381,
        "head_dim": 64,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "key_multiplier": 0.390625,
        "lm_head_multiplier": 0.0390625,
        "mamba_chunk_size": 128,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": 64,
        "mamba_d_ssm": 1536,
        "mamba_d_state": 128,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 24,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": False,
        "mamba_rms_norm": False,
        "mamba_use_mlp": True,
        "mlp_bias": False,
        "mlp_expansion_factor": 8,
        "mlp_multipliers": [0.8838834764831844, 0.5859375],
        "model_type": "falcon_h1",
        "num_attention_heads": 8,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "projectors_bias": False,
        "rope_theta": 100000000000.0,
        "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [0.35, 0.25, 0.17, 0.5, 0.35],
        "ssm_out_multiplier": 0.23,
        "tie_word_embeddings": False,
        "vocab_size": 32784,
    },
    # A dense one, with a rank that follows from its width.
    "Jamba-dense": {
        "attn_layer_offset": 7,
        "attn_layer_period": 14,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "mamba_dt_rank": "auto",
        "model_type": "jamba",
        "num_attention_heads": 20,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 28,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "vocab_size": 65536,
    },
}


def config(model_type: str, **changed: Any) -> dict[str, Any]:
    return FAMILY_SIZES[model_type][0] | {"model_type": model_type} | changed


def built(spec: ModelSpec) -> torch.nn.Module:
    """The model that transformers makes of the spec's config, without memory."""
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**spec.config))
    return model


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_counted_as_transformers_builds_them(name: str) -> None:
    spec = spec_of(RELEASED[name])
    assert spec.parameters().total == built(spec).num_parameters()


def test_channels_that_follow_from_hidden_are_written_out_where_it_is_cut() -> None:
    """A Mamba config's own intermediate_size goes before expand * hidden_size."""
    sizes = {key: value for key, value in config("mamba").items() if key not in ("intermediate_size", "time_step_rank")}
    spec = spec_of(sizes | {"time_step_rank": "auto"})
    assert (spec.sizes["inner_channel"], spec.sizes["time_step_rank"]) == (64, 2)
    small = spec.resized({"hidden_size": 16})
    assert (small.config["intermediate_size"], small.config["time_step_rank"]) == (64, 2)
    assert built(small).backbone.layers[0].mixer.in_proj.weight.shape == (2 * 64, 16)
    assert spec.resized({}).config == spec.config


def test_jambas_channels_are_cut_along_with_hidden() -> None:
    spec = spec_of(config("jamba"))
    small = spec.resized({"hidden_size": 24})
    assert (spec.sizes["inner_channel"], small.sizes["inner_channel"]) == (64, 48)
    model = built(small)
    assert model.model.layers[0].mamba.in_proj.weight.shape == (2 * 48, 24)
    # Heads stay as wide as they are, and time steps keep their rank.
    assert model.model.layers[2].self_attn.q_proj.weight.shape == (32, 24)
    assert small.parameters().total == model.num_parameters()


def test_a_jamba_without_experts_for_two_tokens_keeps_two() -> None:
    """A single expert would be an MLP, with other tensors."""
    assert spec_of(config("jamba", num_experts_per_tok=1)).least("expert") == 2
    assert spec_of(config("jamba", num_experts=1, num_experts_per_tok=1)).letters == "MM*M"


@pytest.mark.parametrize(
    ("model_type", "changed", "why"),
    [
        ("mamba2", {"expand": 3}, "num_heads \\* head_dim = 64 and expand \\* hidden_size = 96"),
        ("mamba", {"state_size": "sixteen"}, "state_size is 'sixteen'; it must be a whole number"),
        ("mamba", {"intermediate_size": "auto"}, ""),
        ("falcon_h1", {"mamba_d_ssm": 64}, "mamba_n_heads \\* mamba_d_head = 80 and mamba_d_ssm = 64 differ"),
        ("falcon_h1", {"lm_head_multiplier": 0}, "lm_head_multiplier is 0; logits need a positive number"),
        ("jamba", {"attn_layer_offset": 4}, "attn_layer_offset = 4 is not smaller than attn_layer_period = 4"),
        ("jamba", {"mamba_d_state": "auto", "mamba_dt_rank": "wide"}, "mamba_dt_rank is 'wide'"),
    ],
)
def test_what_transformers_refuses_is_refused_by_name(model_type: str, changed: dict[str, Any], why: str) -> None:
    if not why:
        # It follows from others, as where the key is absent.
        assert spec_of(config(model_type, **changed)).sizes["inner_channel"] == 64
        return
    with pytest.raises(MinitronError, match=why):
        spec_of(config(model_type, **changed)).logit_map  # noqa: B018 (a property that checks)


def test_layers_of_a_period_go_together() -> None:
    """Of Jamba's 32 layers 8 make a period: runs of 8 go, and what is left still has it."""
    spec, workload = spec_of(RELEASED["Jamba-v0.1"]), Workload(4096)
    found = depths(spec, workload, 1, keep_attention=1)
    assert [len(kept) for kept in found] == [32, 24, 16, 8]
    for kept in found:
        small = spec.resized({}, kept)
        assert small.letters == "".join(spec.letters[layer] for layer in kept)
        assert small.config["attn_layer_period"] == 8 and small.config["expert_layer_offset"] == 1
    assert len(depth_of(spec, workload, 24)) == 24
    with pytest.raises(MinitronError, match=r"30 layers cannot be kept: those of this jamba .* 8 at a time; keep 32"):
        depth_of(spec, workload, 30)
    # Every number of kinds that can be left is one of those.
    assert {
        len(kept) for kept in mixes(spec_of(config("jamba", num_hidden_layers=8)), workload, 1, keep_attention=1)
    } == {8, 4}


def test_layers_are_kept_by_name_where_some_period_says_so() -> None:
    spec = spec_of(config("jamba"))
    assert spec.letters == "ME*E"
    small = spec.resized({}, match_pattern(spec, "M*E"))
    assert small.letters == "M*E" and small.parameters().total == built(small).num_parameters()
    wide = spec_of(config("jamba", num_hidden_layers=12))
    assert wide.letters == "ME*EME*EME*E"
    with pytest.raises(MinitronError, match=r"have no period.*attn_layer_period.*leave out runs of 4 layers"):
        wide.resized({}, (0, 1, 2, 6, 7, 8, 10))


def test_a_scan_without_chunks_counts_by_its_state() -> None:
    """9 operations of each number of the state, as the authors of the kernel count them; no states between chunks."""
    spec = spec_of(RELEASED["falcon-mamba-7b"])
    load = load_of(spec, Workload(4096))
    assert load.scan_operations == 9 * 64 * 8192 * 16
    assert load.state_bytes_per_sequence == 64 * (8192 * 3 * 2 + 8192 * 16 * 4)
    projections = 64 * ((4096 + 2 * 8192) + (8192 + 256 + 2 * 16) + (8192 + 4096))
    assert load.activation_bytes == 2 * 2 * projections
    speed = estimate(load, find_gpu("A10G"), prompt=1024, output=128, concurrency=8)
    assert np.isfinite(speed.output_tokens_per_second) and speed.bound == "bandwidth"


def test_falcon_h1s_inner_width_is_what_its_heads_make() -> None:
    """transformers refuses a config whose mamba_d_ssm is not heads x width."""
    spec = spec_of(config("falcon_h1"))
    small = spec.resized({"mamba_n_heads": 4, "mamba_d_head": 6})
    assert small.config["mamba_d_ssm"] == 24 and spec.resized({}).config == spec.config
    # Left to hidden_size and to the heads, it is said outright once these are cut.
    free = spec_of(config("falcon_h1", mamba_d_ssm=None, mamba_d_head="auto"))
    assert free.sizes["mamba_head_dim"] == 8
    for changed, heads, width in (({"hidden_size": 24}, 8, 8), ({"mamba_n_heads": 4}, 4, 8)):
        small = free.resized(changed)
        assert (small.sizes["mamba_head"], small.sizes["mamba_head_dim"]) == (heads, width)
        assert built(small).model.layers[0].mamba.out_proj.in_features == heads * width


def test_a_layer_with_attention_and_a_state_keeps_both() -> None:
    """vLLM gives each its own group of pages, and a page of keys and values is as large as a state."""
    spec = spec_of(RELEASED["Falcon-H1-0.5B"])
    engine = Engine("vllm", cuda_graphs=False, prefix_caching=False)
    workload = Workload(8192, ssm_state="fp32", engine=engine)
    keep = caches.kept(spec, workload, spec.sizes, spec.kind_counts())
    token, state = 2 * 2 * 64 * 2, (1536 + 2 * 128) * 3 * 2 + 1536 * 128 * 4
    assert (keep.kv_bytes, keep.conv_bytes + keep.state_bytes) == (36 * token * 8192, 36 * state)
    found = pool(workload, keep)
    size = 16 * -(-state // (16 * token))
    assert (int(found.block_size), int(found.page), int(found.group)) == (size, size * token, 36)
    assert int(found.per_sequence) == -(-8192 // size) + 1


def test_linears_that_read_an_axis_as_two_things_are_refitted_each_by_its_own(tmp_path: Path) -> None:
    """x_proj reads the channels behind the convolution, out_proj what the scan made of them."""
    folder = save_family(tmp_path / "model", "mamba", **FAMILY_SIZES["mamba"][0])
    _, scores = scored(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    seen: dict[str, list[torch.Tensor]] = {"x_proj": [], "out_proj": []}
    for name, rows in seen.items():
        linear = model.get_submodule(f"backbone.layers.1.mixer.{name}")
        linear.register_forward_pre_hook(lambda module, args, rows=rows: rows.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        model(torch.from_numpy(np.random.default_rng(0).integers(0, 300, (16, 32))))
    for name, key in (("x_proj", "convolved"), ("out_proj", "inner_channel")):
        inputs = torch.cat(seen[name])
        wanted = (inputs.T @ inputs / len(inputs)).numpy()
        np.testing.assert_allclose(scores.covariance[key, 1], wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
