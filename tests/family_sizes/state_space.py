"""State-space models, and hybrids with the first Mamba."""

from typing import Any

from family_sizes.base import DECODER, VOCAB_SIZE, without_head_dim

PURE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "state_size": 12,
    "conv_kernel": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
JAMBA = {
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 10,
}
FALCON_H1 = {
    "mamba_d_ssm": 80,
    "mamba_n_heads": 8,
    "mamba_d_head": 10,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.4,
    "key_multiplier": 0.5,
    "attention_in_multiplier": 1.5,
    "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.8,
    "ssm_multipliers": [0.9, 0.7, 1.2, 0.5, 1.1],
    "mlp_multipliers": [0.8, 0.6],
}
ZAMBA2 = {
    "num_hidden_layers": 7,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba", "hybrid"],
    "mamba_d_state": 16,
    "mamba_ngroups": 2,
    "n_mamba_heads": 8,
    "num_mem_blocks": 2,
    "adapter_rank": 5,
    "num_key_value_heads": 4,
}

STATE_SPACE: dict[str, list[dict[str, Any]]] = {
    "mamba": [
        PURE | {"intermediate_size": 56, "time_step_rank": 10},
        PURE | {"expand": 2, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "conv_kernel": 3},
    ],
    "falcon_mamba": [
        # As released: expand speaks of another width than intermediate_size.
        PURE | {"intermediate_size": 56, "expand": 16, "time_step_rank": 10, "tie_word_embeddings": False},
        PURE | {"use_bias": True, "use_conv_bias": False},
    ],
    "mamba2": [
        PURE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
        PURE
        | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "use_bias": True, "use_conv_bias": False}
        | {"tie_word_embeddings": True, "chunk_size": 8},
    ],
    "jamba": [
        without_head_dim(DECODER) | JAMBA,
        # A single expert is an MLP.
        DECODER
        | JAMBA
        | {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 0, "mamba_dt_rank": "auto"}
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "tie_word_embeddings": True, "num_hidden_layers": 3},
        without_head_dim(DECODER)
        | JAMBA
        | {"expert_layer_period": 1, "expert_layer_offset": 0, "num_hidden_layers": 3},
    ],
    "falcon_h1": [
        DECODER | FALCON_H1,
        without_head_dim(DECODER)
        | FALCON_H1
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "tie_word_embeddings": True}
        | {"mamba_d_ssm": None, "mamba_d_head": "auto", "mamba_n_heads": 4},
        without_head_dim(DECODER)
        | FALCON_H1
        | {"mamba_rms_norm": True, "projectors_bias": True, "mamba_conv_bias": False, "attention_bias": True}
        | {"mlp_bias": True},
        DECODER | FALCON_H1 | {"mamba_proj_bias": True, "mamba_n_groups": 1, "mamba_d_head": "auto"},
    ],
    "zamba2": [
        without_head_dim(DECODER) | ZAMBA2,
        without_head_dim(DECODER)
        | ZAMBA2
        | {"num_mem_blocks": 1, "use_shared_attention_adapter": True, "add_bias_linear": True, "use_mem_rope": True},
    ],
}
