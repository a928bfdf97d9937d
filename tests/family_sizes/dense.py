"""Dense decoders."""

from typing import Any

from family_sizes.base import DECODER, WINDOWS, without_head_dim

DENSE: dict[str, list[dict[str, Any]]] = {
    "llama": [DECODER | {"attention_bias": True, "mlp_bias": True}, DECODER | {"tie_word_embeddings": True}],
    "mistral": [DECODER | {"sliding_window": 8}, DECODER | {"sliding_window": None}],
    # Its tokenizer adds a token of its own.
    "qwen2": [DECODER | {"vocab_size": 304, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}],
    "qwen3": [DECODER | {"tie_word_embeddings": True}],
    "phi3": [without_head_dim(DECODER) | {"sliding_window": 8}],
    "nemotron": [DECODER | {"attention_bias": True, "mlp_bias": True}],
    "olmo2": [without_head_dim(DECODER)],
    "gemma3_text": [
        DECODER | WINDOWS | {"query_pre_attn_scalar": 12},
        DECODER | {"query_pre_attn_scalar": 12, "attention_bias": True, "tie_word_embeddings": False},
        DECODER | WINDOWS | {"query_pre_attn_scalar": 12, "final_logit_softcapping": 0.5},
    ],
}
