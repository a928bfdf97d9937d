"""Dense decoders."""

from typing import Any

from family_sizes.base import DECODER, GRANITE_NUMBERS, WINDOWS, without_head_dim

# The widths of Gemma 4's full layers, and experts beside its MLPs.
GLOBAL = {
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
}
MIXED = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24}

DENSE: dict[str, list[dict[str, Any]]] = {
    "llama": [DECODER | {"attention_bias": True, "mlp_bias": True}, DECODER | {"tie_word_embeddings": True}],
    "mistral": [DECODER | {"sliding_window": 8}, DECODER | {"sliding_window": None}],
    # Its tokenizer adds a token of its own.
    "qwen2": [DECODER | {"vocab_size": 304, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}],
    "qwen3": [DECODER | {"tie_word_embeddings": True}],
    "phi3": [without_head_dim(DECODER) | {"sliding_window": 8}],
    "nemotron": [DECODER | {"attention_bias": True, "mlp_bias": True}],
    "olmo2": [without_head_dim(DECODER)],
    "ministral": [DECODER | WINDOWS, DECODER | {"sliding_window": 8, "tie_word_embeddings": True}],
    "ministral3": [DECODER, DECODER | {"sliding_window": 8, "tie_word_embeddings": True}],
    "smollm3": [
        DECODER | {"attention_bias": True, "mlp_bias": True},
        without_head_dim(DECODER) | {"use_sliding_window": True, "sliding_window": 8, "tie_word_embeddings": False},
        DECODER | {"no_rope_layers": [1, 0, 1, 1], "layer_types": WINDOWS["layer_types"], "sliding_window": 8},
    ],
    "seed_oss": [
        DECODER,
        DECODER | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ],
    "hunyuan_v1_dense": [DECODER | {"tie_word_embeddings": True}, DECODER | {"attention_bias": True}],
    "olmo3": [without_head_dim(DECODER) | {"sliding_window": 8}, DECODER | {"attention_bias": True}],
    "exaone4": [
        DECODER | {"sliding_window": 8},
        without_head_dim(DECODER)
        | {"sliding_window": None, "layer_types": ["full_attention"] * 4, "tie_word_embeddings": True},
        DECODER | {"sliding_window": 8, "sliding_window_pattern": 2},
    ],
    "glm4": [DECODER, DECODER | {"attention_bias": False, "tie_word_embeddings": True}],
    "cohere": [
        DECODER | {"logit_scale": 3.0, "use_qk_norm": True},
        without_head_dim(DECODER) | {"logit_scale": 3.0, "attention_bias": True, "tie_word_embeddings": False},
    ],
    "cohere2": [
        without_head_dim(DECODER) | {"logit_scale": 3.0, "sliding_window": 8},
        DECODER | WINDOWS | {"logit_scale": 0.5, "attention_bias": True, "tie_word_embeddings": False},
    ],
    "gemma2": [
        DECODER | {"query_pre_attn_scalar": 12, "sliding_window": 8, "final_logit_softcapping": 0.5},
        DECODER
        | WINDOWS
        | {"query_pre_attn_scalar": 12, "final_logit_softcapping": None, "attn_logit_softcapping": 0.25}
        | {"attention_bias": True, "tie_word_embeddings": False},
    ],
    "gemma4_text": [
        DECODER | GLOBAL | {"attention_k_eq_v": True, "final_logit_softcapping": 0.5},
        DECODER | GLOBAL | {"attention_bias": True, "tie_word_embeddings": False},
        DECODER
        | GLOBAL
        | {"attention_k_eq_v": True, "num_global_key_value_heads": None, "attention_bias": True}
        | MIXED,
        DECODER | GLOBAL | {"attention_k_eq_v": True} | MIXED,
    ],
    "granite": [
        DECODER | GRANITE_NUMBERS,
        without_head_dim(DECODER)
        | GRANITE_NUMBERS
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ],
    "glm": [DECODER, DECODER | {"attention_bias": False, "tie_word_embeddings": True}],
    "arcee": [DECODER | {"attention_bias": True, "mlp_bias": True}, DECODER | {"tie_word_embeddings": True}],
    "apertus": [
        DECODER,
        without_head_dim(DECODER) | {"attention_bias": True, "tie_word_embeddings": True},
        DECODER | {"hidden_act": "silu"},
    ],
    "ernie4_5": [DECODER, DECODER | {"use_bias": True, "tie_word_embeddings": False}],
    "gemma3_text": [
        DECODER | WINDOWS | {"query_pre_attn_scalar": 12},
        DECODER | {"query_pre_attn_scalar": 12, "attention_bias": True, "tie_word_embeddings": False},
        DECODER | WINDOWS | {"query_pre_attn_scalar": 12, "final_logit_softcapping": 0.5},
    ],
}
