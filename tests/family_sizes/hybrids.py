"""Hybrids and state-space models."""

from typing import Any

from family_sizes.base import (
    DECODER,
    DELTA_NETS,
    EXPERTS,
    HYBRID_SIZES,
    LAYERS,
    MAMBA,
    PATTERN,
    without,
    without_head_dim,
)

HYBRIDS: dict[str, list[dict[str, Any]]] = {
    "nemotron_h": [
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in PATTERN]},
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in "ME*"], "moe_latent_size": 16},
        HYBRID_SIZES
        | {"layers_block_type": [LAYERS[kind] for kind in "M-*E"], "use_bias": True, "mlp_bias": True}
        | {"use_conv_bias": False, "tie_word_embeddings": True},
    ],
    "qwen3_next": [DECODER | EXPERTS | DELTA_NETS],
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
    "bamba": [
        without_head_dim(DECODER) | MAMBA,
        without_head_dim(DECODER) | MAMBA | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mlp_bias": True},
    ],
}
