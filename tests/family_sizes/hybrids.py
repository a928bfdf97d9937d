"""Hybrids and state-space models."""

from typing import Any

from family_sizes.base import DECODER, DELTA_NETS, EXPERTS, HYBRID_SIZES, LAYERS, MAMBA, PATTERN, without_head_dim

HYBRIDS: dict[str, list[dict[str, Any]]] = {
    "nemotron_h": [
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in PATTERN]},
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in "ME*"], "moe_latent_size": 16},
        HYBRID_SIZES
        | {"layers_block_type": [LAYERS[kind] for kind in "M-*E"], "use_bias": True, "mlp_bias": True}
        | {"use_conv_bias": False, "tie_word_embeddings": True},
    ],
    "qwen3_next": [DECODER | EXPERTS | DELTA_NETS],
    "bamba": [
        without_head_dim(DECODER) | MAMBA,
        without_head_dim(DECODER) | MAMBA | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mlp_bias": True},
    ],
}
