"""Mixtures of experts."""

from typing import Any

from family_sizes.base import DECODER, EXPERTS, GRANITE_NUMBERS, LATENT, WINDOWS, without_head_dim

MIXTURES: dict[str, list[dict[str, Any]]] = {
    "qwen3_moe": [DECODER | EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True}],
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
}
