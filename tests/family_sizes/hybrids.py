"""Hybrids and state-space models."""

from typing import Any

from family_sizes.base import (
    CONVOLUTIONS,
    DECODER,
    DELTA_ATTENTION,
    DELTA_NETS,
    EXPERTS,
    GRANITE_NUMBERS,
    HYBRID_SIZES,
    KIMI,
    LAYERS,
    MAMBA,
    PATTERN,
    without,
    without_head_dim,
)

GRANITE_HYBRID = (
    without_head_dim(DECODER)
    | without(MAMBA, "attn_layer_indices")
    | GRANITE_NUMBERS
    | {"intermediate_size": 24, "shared_intermediate_size": 40, "num_experts_per_tok": 2}
)

OLMO_NETS = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
}

LIGHTNING = {
    "num_hidden_layers": 3,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size": 24,
    "block_size": 7,
    "linear_attn_alpha_factor": 1.4,
    "linear_attn_beta_factor": 0.8,
    "full_attn_alpha_factor": 0.7,
    "full_attn_beta_factor": 1.2,
    "mlp_alpha_factor": 1.5,
    "mlp_beta_factor": 0.6,
}

HYBRIDS: dict[str, list[dict[str, Any]]] = {
    "nemotron_h": [
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in PATTERN]},
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in "ME*"], "moe_latent_size": 16},
        HYBRID_SIZES
        | {"layers_block_type": [LAYERS[kind] for kind in "M-*E"], "use_bias": True, "mlp_bias": True}
        | {"use_conv_bias": False, "tie_word_embeddings": True},
    ],
    "qwen3_next": [
        DECODER | EXPERTS | DELTA_NETS,
        DECODER | EXPERTS | DELTA_NETS | {"decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True},
    ],
    "qwen3_5_text": [
        DECODER | DELTA_NETS | {"attention_bias": True},
        # The kinds of layers follow from the interval.
        without(DECODER | DELTA_NETS, "layer_types")
        | {"full_attention_interval": 2, "linear_num_value_heads": 12, "tie_word_embeddings": True},
    ],
    # Its tokenizer adds a token of its own.
    "qwen3_5_moe_text": [
        DECODER | EXPERTS | DELTA_NETS | {"vocab_size": 304},
        DECODER
        | EXPERTS
        | DELTA_NETS
        | {"vocab_size": 304, "tie_word_embeddings": True, "save_original_format": False},
    ],
    "granitemoehybrid": [
        GRANITE_HYBRID | {"num_local_experts": 6, "layer_types": ["mamba", "mamba", "attention", "mamba"]},
        # Without experts, the layers in the words of transformers 5.
        GRANITE_HYBRID
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "tie_word_embeddings": True}
        | {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]}
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "attention_bias": True},
        # Attention alone, with or without experts; transformers still asks that the sizes of Mamba heads fit.
        GRANITE_HYBRID | {"num_local_experts": 0, "position_embedding_type": "rope", "layer_types": ["attention"] * 4},
        GRANITE_HYBRID | {"num_local_experts": 6, "layer_types": ["attention"] * 4, "head_dim": 12},
    ],
    "lfm2": [
        without_head_dim(DECODER) | {"full_attn_idxs": [2], "block_multiple_of": 8},
        DECODER
        | CONVOLUTIONS
        | {"conv_bias": True, "conv_L_cache": 4, "tie_word_embeddings": False}
        | {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 4},
        # A spelling of the released configs, and an FFN that is as wide as its key says.
        without_head_dim(DECODER) | CONVOLUTIONS | {"tie_embedding": False, "block_auto_adjust_ff_dim": False},
    ],
    "lfm2_moe": [
        without_head_dim(DECODER) | EXPERTS | CONVOLUTIONS | {"num_dense_layers": 1},
        without_head_dim(DECODER)
        | EXPERTS
        | CONVOLUTIONS
        | {"use_expert_bias": False, "conv_bias": True}
        | {"tie_word_embeddings": False, "num_dense_layers": 3},
    ],
    "lfm3": [
        DECODER | {"num_hidden_layers": 6, "sliding_window": 8},
        DECODER
        | {"layer_types": ["conv", "sliding_attention", "full_attention", "conv"], "sliding_window": 8}
        | {"conv_bias": True, "attention_bias": True, "conv_L_cache": 3, "tie_word_embeddings": False}
        | {"use_sandwich_norm": False, "use_attention_gate": False},
    ],
    "bailing_hybrid": [
        KIMI
        | {"num_expert_group": 2, "topk_group": 1, "head_dim": 8, "layer_group_size": 3, "num_hidden_layers": 4}
        | {"first_k_dense_replace": 1, "num_experts": 8},
        # Widths that differ, of which transformers then writes one twice.
        KIMI
        | {"num_expert_group": 1, "topk_group": 1, "head_dim": 16, "short_conv_kernel_size": 3}
        | {"mlp_layer_types": ["sparse", "dense"] * 2, "layer_types": ["full_attention", "linear_attention"] * 2}
        | {"attention_bias": True, "tie_word_embeddings": True},
    ],
    "kimi_linear": [
        KIMI | {"linear_attn_config": DELTA_ATTENTION, "first_k_dense_replace": 1},
        # Groups of experts, and all that transformers' own class calls by other names.
        KIMI
        | {"linear_head_dim": 8, "linear_num_heads": 6, "linear_conv_kernel_dim": 3, "num_hidden_layers": 5}
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "dense", "sparse"], "num_expert_group": 2}
        | {"num_experts": 12, "num_shared_experts": 1, "tie_word_embeddings": True},
        KIMI
        | {"linear_attn_config": DELTA_ATTENTION, "layer_types": ["full_attention", "linear_attention"] * 2}
        | {"first_k_dense_replace": 2, "q_lora_rank": 20, "attention_bias": True},
    ],
    "bamba": [
        without_head_dim(DECODER) | MAMBA,
        without_head_dim(DECODER) | MAMBA | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mlp_bias": True},
    ],
    # No layer of these can be left out, so that they have few.
    "minimax": [
        DECODER | LIGHTNING | {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
        without_head_dim(DECODER)
        | LIGHTNING
        | {"block_size": 40, "num_local_experts": 4, "tie_word_embeddings": True, "sliding_window": 8},
    ],
    # As wide values as keys: transformers writes a convolution over all in three equal parts.
    "olmo_hybrid": [
        without_head_dim(DECODER) | OLMO_NETS,
        DECODER | OLMO_NETS | {"attention_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 3},
    ],
}
