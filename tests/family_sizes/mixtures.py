"""Mixtures of experts."""

from typing import Any

from family_sizes.base import DECODER, EXPERTS, GRANITE_NUMBERS, LATENT, WINDOWS, without_head_dim

ERNIE = {
    "moe_num_experts": 6,
    "moe_k": 2,
    "moe_intermediate_size": 24,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
}

GROUPS = {"n_group": 2, "topk_group": 1}
SHARED = {"num_shared_experts": 2, "moe_intermediate_size": 24, "num_experts_per_tok": 2}

INDEXED = {"index_n_heads": 2, "index_head_dim": 14, "index_topk": 9}
ROUTED = {key: LATENT[key] for key in LATENT if key.startswith(("moe", "n_", "num_experts", "topk"))}

MIXTURES: dict[str, list[dict[str, Any]]] = {
    # Its tokenizer adds a token of its own.
    "qwen2_moe": [
        DECODER
        | EXPERTS
        | {"vocab_size": 304, "shared_expert_intermediate_size": 28, "mlp_only_layers": [1]}
        | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
        DECODER
        | EXPERTS
        | {"vocab_size": 304, "shared_expert_intermediate_size": 28, "decoder_sparse_step": 2}
        | {"qkv_bias": False, "tie_word_embeddings": True},
    ],
    "qwen3_moe": [
        DECODER | EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True},
        DECODER
        | EXPERTS
        | {"decoder_sparse_step": 2, "attention_bias": True, "use_sliding_window": True, "sliding_window": 8},
    ],
    "olmoe": [
        without_head_dim(DECODER) | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24},
        without_head_dim(DECODER)
        | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "num_key_value_heads": 4}
        | {"attention_bias": True, "tie_word_embeddings": True, "clip_qkv": 1.5},
    ],
    "minimax_m2": [
        DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "rotary_dim": 6}
    ],
    "mixtral": [
        DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2},
        DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8, "tie_word_embeddings": True},
    ],
    "granitemoe": [
        DECODER | GRANITE_NUMBERS | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24},
        without_head_dim(DECODER)
        | GRANITE_NUMBERS
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "attention_bias": True, "tie_word_embeddings": True},
    ],
    "gpt_oss": [DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24} | WINDOWS],
    "deepseek_v3": [
        without_head_dim(DECODER) | LATENT,
        without_head_dim(DECODER) | LATENT | {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 1},
    ],
    "deepseek_v2": [
        # Every constraint on routing: two experts of one of two groups.
        without_head_dim(DECODER) | LATENT | {"topk_method": "group_limited_greedy", "mlp_bias": True},
        without_head_dim(DECODER)
        | LATENT
        | {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 1, "first_k_dense_replace": 0}
        | {"n_group": None, "topk_group": None, "num_key_value_heads": None, "tie_word_embeddings": True},
    ],
    "glm4_moe": [
        DECODER
        | {
            key: LATENT[key]
            for key in LATENT
            if key.startswith(("moe", "n_", "num_experts", "topk", "first", "num_mtp"))
        }
        | {"attention_bias": True},
        DECODER
        | {key: LATENT[key] for key in LATENT if key.startswith(("moe", "n_", "num_experts", "num_mtp"))}
        | {"n_group": 1, "first_k_dense_replace": 2, "use_qk_norm": True, "tie_word_embeddings": True},
    ],
    "glm4_moe_lite": [
        without_head_dim(DECODER) | LATENT | {"first_k_dense_replace": 1},
        without_head_dim(DECODER)
        | LATENT
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "q_lora_rank": None, "attention_bias": True}
        | {"n_group": 1, "rope_interleave": False},
    ],
    "ernie4_5_moe": [
        without_head_dim(DECODER) | ERNIE,
        DECODER | ERNIE | {"moe_num_shared_experts": 0, "moe_layer_end_index": 2, "tie_word_embeddings": False},
        DECODER | ERNIE | {"use_bias": True},
    ],
    "hunyuan_v1_moe": [
        DECODER | {"num_experts": 6, "moe_topk": 2, "tie_word_embeddings": True},
        DECODER
        | {"num_experts": 6, "moe_topk": [2, 2, 2, 2], "attention_bias": True}
        | {"moe_intermediate_size": [56, 56, 56, 56], "num_shared_expert": [1, 1, 1, 1]},
    ],
    "llama4_text": [
        DECODER
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "intermediate_size_mlp": 56}
        | {"attention_chunk_size": 8, "interleave_moe_layer_step": 2, "attention_bias": True},
        DECODER
        | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 24, "intermediate_size_mlp": 56}
        | {"attention_chunk_size": 8, "no_rope_layers": [1, 0, 1, 1], "moe_layers": [0, 1, 3], "floor_scale": 4}
        | {"use_qk_norm": False, "tie_word_embeddings": True},
    ],
    "phimoe": [
        without_head_dim(DECODER)
        | {"num_local_experts": 6, "intermediate_size": 24, "attention_bias": True, "lm_head_bias": True},
        without_head_dim(DECODER)
        | {"num_local_experts": 6, "intermediate_size": 24, "sliding_window": 8, "tie_word_embeddings": True},
    ],
    "dots1": [
        DECODER
        | {key: LATENT[key] for key in LATENT if key.startswith(("moe", "n_", "num_experts", "topk", "first"))}
        | {"sliding_window": 8, "max_window_layers": 2},
        without_head_dim(DECODER)
        | {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"attention_bias": True, "sliding_window": None, "tie_word_embeddings": True},
    ],
    "afmoe": [
        DECODER | EXPERTS | {"sliding_window": 8, "num_shared_experts": 2, "mup_enabled": True},
        DECODER
        | EXPERTS
        | {"sliding_window": 8, "num_shared_experts": 1, "num_dense_layers": 2, "attention_bias": True}
        | {"tie_word_embeddings": True, "global_attn_every_n_layers": 2, "num_key_value_heads": None},
    ],
    "exaone_moe": [
        DECODER | SHARED | GROUPS | {"num_experts": 8, "sliding_window": 8},
        without_head_dim(DECODER)
        | SHARED
        | {"num_experts": 6, "num_shared_experts": 1, "first_k_dense_replace": 2, "tie_word_embeddings": True}
        | {"sliding_window": 8, "sliding_window_pattern": 2},
    ],
    "hy_v3": [
        DECODER | SHARED | {"num_experts": 6},
        DECODER
        | SHARED
        | {"num_experts": 6, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]},
    ],
    "deepseek_v32": [
        without_head_dim(DECODER) | LATENT | INDEXED,
        without_head_dim(DECODER)
        | LATENT
        | {"index_n_heads": 2, "index_head_dim": 14, "index_topk": 64, "attention_bias": True, "n_shared_experts": 1}
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "tie_word_embeddings": True},
    ],
    "glm_moe_dsa": [without_head_dim(DECODER) | LATENT | INDEXED],
    "solar_open": [DECODER | ROUTED | {"attention_bias": True}, DECODER | ROUTED | {"n_group": 1}],
    "granitemoeshared": [
        DECODER
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "shared_intermediate_size": 28}
        | {"logits_scaling": 2.0, "attention_bias": True},
        DECODER
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24}
        | {"tie_word_embeddings": True, "embedding_multiplier": 3.0},
    ],
    "flex_olmo": [
        DECODER | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24},
        without_head_dim(DECODER)
        | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "num_key_value_heads": None}
        | {"attention_bias": True, "tie_word_embeddings": True},
    ],
}
