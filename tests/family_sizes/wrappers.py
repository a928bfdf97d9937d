"""Models that hold a language model beside what sees or hears."""

from typing import Any

from family_sizes.base import (
    DECODER,
    DELTA_NETS,
    EXPERTS,
    HYBRID_SIZES,
    LAYERS,
    WINDOWS,
    without_head_dim,
)
from family_sizes.dense import GLOBAL

VISION: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
"""A vision tower of four patches."""

QWEN_VISION: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14}
"""Such a tower in the words of Qwen's configs."""


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return DECODER | {"model_type": model_type} | more


def _mrope(head_dim: int) -> dict[str, Any]:
    """Rotary positions in time, height and width."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [head_dim // 2 - 2, 1, 1]}


_SIGLIP = VISION | {"model_type": "siglip_vision_model"}
_CLIP = VISION | {"model_type": "clip_vision_model"}
_PIXTRAL = VISION | {"model_type": "pixtral", "head_dim": 10, "image_size": 56}
_QWEN2_TEXT = without_head_dim(DECODER) | {"vocab_size": 304, "intermediate_size": 168, "rope_parameters": _mrope(8)}

_QWEN3_VISION = QWEN_VISION | {
    "hidden_size": 16,
    "intermediate_size": 28,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}

_RADIO: dict[str, Any] = {
    "model_type": "radio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "max_img_size": 84,
    "video_temporal_patch_size": 2,
}
_PARAKEET: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 6,
    "num_mel_bins": 16,
    "projection_hidden_size": 18,
    "projection_bias": False,
}


def _omni(pattern: str, **more: Any) -> dict[str, Any]:
    text = HYBRID_SIZES | {"model_type": "nemotron_h", "layers_block_type": [LAYERS[kind] for kind in pattern]}
    return {
        "text_config": text | more,
        "vision_config": _RADIO,
        "image_token_id": 299,
        "audio_token_id": 298,
        "vision_hidden_size": 16,
        "projector_hidden_size": 20,
    }


WRAPPERS: dict[str, list[dict[str, Any]]] = {
    "gemma3": [
        {
            "text_config": _text("gemma3_text", query_pre_attn_scalar=12) | WINDOWS,
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": 299,
        },
        {
            "text_config": _text("gemma3_text", query_pre_attn_scalar=12),
            "vision_config": _SIGLIP | {"vision_use_head": False},
            "mm_tokens_per_image": 1,
            "image_token_index": 299,
            "tie_word_embeddings": False,
        },
    ],
    "mistral3": [
        {
            "text_config": _text("mistral", sliding_window=None),
            "vision_config": _PIXTRAL,
            "image_token_index": 299,
            "tie_word_embeddings": False,
        },
        {
            "text_config": _text("ministral3", sliding_window=8, tie_word_embeddings=True),
            "vision_config": _PIXTRAL,
            "image_token_index": 299,
            "multimodal_projector_bias": True,
            "vision_feature_layer": -2,
        },
    ],
    "llava": [
        {
            "text_config": _text("llama", mlp_bias=True),
            "vision_config": _CLIP,
            "image_token_index": 299,
            "image_seq_length": 4,
        },
        {
            "text_config": _text("llama", tie_word_embeddings=True),
            "vision_config": _PIXTRAL,
            "image_token_index": 299,
            "multimodal_projector_bias": False,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
    ],
    "llava_next": [
        {
            "text_config": _text("mistral"),
            "vision_config": _CLIP,
            "image_token_index": 299,
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
            "vision_feature_layer": [-2, -1],
        }
    ],
    "qwen2_vl": [
        {
            "text_config": _QWEN2_TEXT | {"tie_word_embeddings": True},
            "vision_config": QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2, "hidden_size": 32},
            "image_token_id": 299,
        }
    ],
    "qwen2_5_vl": [
        {
            "text_config": _QWEN2_TEXT | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "vision_config": QWEN_VISION | {"hidden_size": 16, "intermediate_size": 28, "out_hidden_size": 32},
            "image_token_id": 299,
        }
    ],
    "llama4": [
        {
            "text_config": _text("llama4_text", num_local_experts=6, intermediate_size=24, intermediate_size_mlp=56)
            | {"moe_layers": [1, 3], "no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 8},
            "vision_config": VISION
            | {"hidden_size": 16, "intermediate_size": 64, "vision_output_dim": 24}
            | {"projector_input_dim": 24, "projector_output_dim": 24},
            "image_token_index": 299,
        }
    ],
    "gemma4": [
        {
            "text_config": _text("gemma4_text", attention_k_eq_v=True) | GLOBAL,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 28,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "patch_size": 14,
                "position_embedding_size": 16,
                "pooling_kernel_size": 2,
                "standardize": True,
            },
            "image_token_id": 299,
        }
    ],
    "nemotron_h_omni": [
        _omni("ME*-") | {"audio_config": _PARAKEET},
        # A dense language model in a model that does not hear.
        _omni("M-*M", use_bias=True, mlp_bias=True)
        | {"vision_config": _RADIO | {"use_swiglu_ffn": True, "qkv_bias": False, "mlp_ratio": 2.5}}
        | {"projector_hidden_size": 28},
        _omni("ME*E", moe_latent_size=16)
        | {"video_temporal_patch_size": 3}
        | {"vision_config": _RADIO | {"video_temporal_patch_size": 3, "num_registers": 2, "summary_idxs": [0]}}
        | {
            "audio_config": _PARAKEET
            | {"projection_bias": True, "attention_bias": True, "convolution_bias": False, "subsampling_factor": 4}
        },
    ],
    "qwen3_vl": [
        {
            "text_config": DECODER | {"rope_parameters": _mrope(12)},
            "vision_config": _QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]},
            "image_token_id": 299,
            "tie_word_embeddings": True,
        }
    ],
    "qwen3_5": [
        {
            "text_config": DECODER | DELTA_NETS | {"vocab_size": 304, "model_type": "qwen3_5_text"},
            "vision_config": _QWEN3_VISION,
            "image_token_id": 299,
        },
        {
            "text_config": DECODER
            | DELTA_NETS
            | {"vocab_size": 304, "model_type": "qwen3_5_text", "attention_bias": True},
            "vision_config": _QWEN3_VISION,
            "image_token_id": 299,
            "tie_word_embeddings": True,
        },
    ],
    "qwen3_5_moe": [
        {
            "text_config": DECODER | EXPERTS | DELTA_NETS | {"vocab_size": 304, "model_type": "qwen3_5_moe_text"},
            "vision_config": _QWEN3_VISION,
            "image_token_id": 299,
        }
    ],
}
