"""Sizes that tiny models share: every size differs from every other where it can."""

from typing import Any

VOCAB_SIZE = 300

LAYERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
PATTERN = "MEM*-ME*"

HYBRID_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 56,
    "mamba_num_heads": 8,
    "mamba_head_dim": 10,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 256,
}

LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DECODER = {key: value for key, value in LLAMA_SIZES.items() if key != "num_hidden_layers"} | {"num_hidden_layers": 4}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

DELTA_NETS = {
    "shared_expert_intermediate_size": 28,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "mlp_only_layers": [],
}
CONVOLUTIONS = {"layer_types": ["conv", "conv", "full_attention", "conv"]}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_mtp_layers": 0,
}
KIMI = {key: value for key, value in DECODER.items() if key != "head_dim"} | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_shared_experts": 2,
    "num_experts_per_token": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
DELTA_ATTENTION = {
    "full_attn_layers": [3],
    "kda_layers": [1, 2, 4],
    "head_dim": 8,
    "num_heads": 6,
    "short_conv_kernel_size": 4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "attn_layer_indices": [2],
}


GRANITE_NUMBERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.25,
}


def without(sizes: dict[str, Any], *keys: str) -> dict[str, Any]:
    """For types that leave some keys out."""
    return {key: value for key, value in sizes.items() if key not in keys}


def without_head_dim(sizes: dict[str, Any]) -> dict[str, Any]:
    """For types whose heads share hidden_size out."""
    return {key: value for key, value in sizes.items() if key != "head_dim"}
