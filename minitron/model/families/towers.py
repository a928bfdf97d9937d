"""What a vision or audio tower holds: how many numbers, in the keys of its own config.

Towers are carried as they are, so nothing but their size need be known of them.  The expressions are sums over the
tensors of transformers' classes, as they stand there; a word is a key of the tower's config or one of `derived`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.foreign import why
from minitron.model.axes import Config, whole
from minitron.model.dims import axes_of, numel, parse

Sub = Mapping[str, Any]
"""The config of a tower, with what absent keys mean."""


@dataclass(frozen=True)
class Tower:
    """One type of tower."""

    numbers: str
    """How many it holds, as a dimension is spelled (minitron.model.dims)."""

    defaults: Mapping[str, Any]
    """What absent keys mean: transformers' class defaults."""

    derived: Mapping[str, Callable[[Sub], int]] = field(default_factory=dict)
    """word -> a number that follows from keys."""

    def count(self, config: Sub) -> int:
        """How many numbers a tower of this config holds; raises MinitronError for a key that is no whole number."""
        return self.value(self.numbers, config)

    def value(self, expression: str, config: Sub) -> int:
        """What an expression in the tower's keys comes to."""
        said = {**self.defaults, **{key: value for key, value in config.items() if value is not None}}
        dim = parse(expression)
        try:
            sizes = {word: self._size(word, said) for word in axes_of(dim)}
            return int(numel(dim, sizes))
        # Much of what a tower's size follows from is of no fixed kind: a list, a ratio, a pair.
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise MinitronError(
                f"config.json: the config of what sees or hears says no size of it ({why(error)}); correct it."
            ) from None

    def _size(self, word: str, said: Sub) -> int:
        if word in self.derived:
            return self.derived[word](said)
        value = said.get(word)
        return int(value) if isinstance(value, bool) else whole(word, value)


def side(value: Any) -> tuple[int, int]:
    """(height, width) of what a config gives as one number or two."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return whole("the height", value[0]), whole("the width", value[1])
    return whole("the size", value), whole("the size", value)


def _area(key: str) -> Callable[[Sub], int]:
    return lambda said: prod(side(said[key]))


def _patches(said: Sub) -> int:
    pairs = zip(side(said["image_size"]), side(said["patch_size"]), strict=True)
    return prod(image // max(patch, 1) for image, patch in pairs)


_IMAGE: Final = {"patches": _patches, "patch_area": _area("patch_size")}

_LINEARS: Final = "4*hidden_size*(hidden_size + 1) + intermediate_size*(2*hidden_size + 1) + hidden_size"
"""Attention with biases and an MLP of two linears with biases."""

_SIGLIP: Final = (
    "hidden_size*(num_channels*patch_area + 1 + patches)"
    f" + num_hidden_layers*({_LINEARS} + 4*hidden_size) + 2*hidden_size"
    f" + vision_use_head*({_LINEARS} + 3*hidden_size)"
)
_CLIP: Final = (
    "hidden_size*(num_channels*patch_area + 1 + patches + 1)"
    f" + num_hidden_layers*({_LINEARS} + 4*hidden_size) + 4*hidden_size"
)
_PIXTRAL: Final = (
    "hidden_size*(num_channels*patch_area + 1)"
    " + num_hidden_layers*(4*hidden_size*hidden_size + 3*hidden_size*intermediate_size + 2*hidden_size)"
)
_MERGER: Final = "(merged*(merged + 1))"
"""The first linear of a merger; the second writes the residual stream."""

_QWEN2: Final = (
    "embed_dim*in_channels*temporal*patch_area"
    " + depth*(4*embed_dim*(embed_dim + 1) + 2*embed_dim*mlp_ratio*embed_dim + mlp_ratio*embed_dim + 5*embed_dim)"
    f" + 2*embed_dim + {_MERGER}"
)
_QWEN2_5: Final = (
    "hidden_size*in_channels*temporal*patch_area"
    " + depth*(4*hidden_size*(hidden_size + 1) + 3*hidden_size*intermediate_size + 2*intermediate_size"
    " + 3*hidden_size)"
    f" + hidden_size + {_MERGER}"
)
_QWEN3: Final = (
    "hidden_size*(in_channels*temporal*patch_area + 1 + num_position_embeddings)"
    f" + depth*({_LINEARS} + 4*hidden_size)"
    f" + 2*hidden_size + {_MERGER} + deepstack*(2*merged + {_MERGER})"
)
_LLAMA4: Final = (
    "hidden_size*(num_channels*patch_area + 1 + patches + 1)"
    f" + num_hidden_layers*({_LINEARS} + 4*hidden_size) + 4*hidden_size"
    " + projector_input_dim*intermediate_size + projector_output_dim*projector_output_dim"
)
_GEMMA4: Final = (
    "hidden_size*(2*position_embedding_size + 3*patch_area)"
    " + num_hidden_layers*(2*hidden_size*num_attention_heads*head_dim + 2*hidden_size*num_key_value_heads*head_dim"
    " + 3*hidden_size*intermediate_size + 4*hidden_size + 2*head_dim + 28*use_clipped_linears)"
    " + 2*standardize*hidden_size"
)
_RADIO: Final = (
    "hidden_size*((1 + video_temporal_patch_size)*num_channels*patch_area + positions + num_cls_tokens + num_registers)"
    " + num_hidden_layers*(3*hidden_size*inner + 3*qkv_bias*inner + inner*hidden_size + hidden_size + mlp"
    " + 6*hidden_size) + summaries"
)
_PARAKEET: Final = (
    "subsampling_conv_channels*(kernel_area + 1)"
    " + behind_the_first*subsampling_conv_channels*(kernel_area + 2 + subsampling_conv_channels)"
    " + subsampling_conv_channels*bins*hidden_size + hidden_size"
    " + num_hidden_layers*(4*hidden_size*intermediate_size + 2*attention_bias*(intermediate_size + hidden_size)"
    " + 5*hidden_size*inner + attention_bias*(3*inner + hidden_size) + 2*inner"
    " + hidden_size*(3*hidden_size + conv_kernel_size) + 4*convolution_bias*hidden_size"
    " + 4*hidden_size + 1 + 10*hidden_size)"
)
"""With what its batch normalisation has seen: two numbers a channel and how many batches they are of."""


def _merged(width: str) -> Callable[[Sub], int]:
    return lambda said: whole(width, said[width]) * whole("spatial_merge_size", said["spatial_merge_size"]) ** 2


def _temporal(said: Sub) -> int:
    value = said["temporal_patch_size"]
    return whole("temporal_patch_size", value[0] if isinstance(value, list | tuple) else value)


def _qwen(width: str) -> dict[str, Callable[[Sub], int]]:
    return {
        "patch_area": _area("patch_size"),
        "temporal": _temporal,
        "merged": _merged(width),
        "deepstack": lambda said: len(said["deepstack_visual_indexes"]),
    }


def _heads_width(said: Sub) -> int:
    """The width of all heads of attention together."""
    heads = whole("num_attention_heads", said["num_attention_heads"])
    own = said.get("head_dim")
    return heads * (whole("hidden_size", said["hidden_size"]) // max(heads, 1) if own is None else int(own))


def _positions(said: Sub) -> int:
    return (whole("max_img_size", said["max_img_size"]) // max(whole("patch_size", said["patch_size"]), 1)) ** 2


def _radio_mlp(said: Sub) -> int:
    hidden = whole("hidden_size", said["hidden_size"])
    inner = int(hidden * said["mlp_ratio"])
    if not said["use_swiglu_ffn"]:
        return inner * (2 * hidden + 1) + hidden
    # As transformers' class rounds it.
    inner = (int(inner * 2 / 3) + 7) // 8 * 8
    return inner * (3 * hidden + 2) + hidden


def _subsamplings(said: Sub) -> int:
    return whole("subsampling_factor", said["subsampling_factor"]).bit_length() - 1


def _bins_left(said: Sub) -> int:
    stride = whole("subsampling_conv_stride", said["subsampling_conv_stride"])
    return whole("num_mel_bins", said["num_mel_bins"]) // int(stride ** _subsamplings(said))


_QWEN_DEFAULTS: Final = {"in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14}
_QWEN3_DEFAULTS: Final = _QWEN_DEFAULTS | {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (),
}
_VIT_DEFAULTS: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
}

TOWERS: Final[dict[str, Tower]] = {
    "siglip_vision_model": Tower(_SIGLIP, _VIT_DEFAULTS | {"patch_size": 16, "vision_use_head": True}, _IMAGE),
    "clip_vision_model": Tower(_CLIP, _VIT_DEFAULTS | {"patch_size": 32}, _IMAGE),
    "pixtral": Tower(
        _PIXTRAL,
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_channels": 3,
            "image_size": 1024,
            "patch_size": 16,
        },
        _IMAGE,
    ),
    "qwen2_vl_vision": Tower(
        _QWEN2, _QWEN_DEFAULTS | {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4}, _qwen("embed_dim")
    ),
    "qwen2_5_vl_vision": Tower(
        _QWEN2_5,
        _QWEN_DEFAULTS | {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420},
        _qwen("hidden_size"),
    ),
    "qwen3_vl_vision": Tower(_QWEN3, _QWEN3_DEFAULTS | {"deepstack_visual_indexes": (8, 16, 24)}, _qwen("hidden_size")),
    "qwen3_5_vision": Tower(_QWEN3, _QWEN3_DEFAULTS, _qwen("hidden_size")),
    "llama4_vision_model": Tower(
        _LLAMA4,
        {
            "hidden_size": 768,
            "intermediate_size": 5632,
            "num_hidden_layers": 34,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "vision_output_dim": 7680,
            "projector_input_dim": 4096,
            "projector_output_dim": 4096,
        },
        _IMAGE,
    ),
    "gemma4_vision": Tower(
        _GEMMA4,
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "head_dim": 64,
            "patch_size": 16,
            "position_embedding_size": 10_240,
            "use_clipped_linears": False,
            "standardize": False,
        },
        _IMAGE,
    ),
    "radio": Tower(
        _RADIO,
        {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "mlp_ratio": 4.0,
            "use_swiglu_ffn": False,
            "qkv_bias": True,
            "num_channels": 3,
            "patch_size": 16,
            "max_img_size": 2048,
            "num_cls_tokens": 3,
            "num_registers": 7,
            "summary_idxs": [0, 1],
        },
        {
            "patch_area": _area("patch_size"),
            "positions": _positions,
            "inner": _heads_width,
            "mlp": _radio_mlp,
            "summaries": lambda said: len(said["summary_idxs"]),
            "video_temporal_patch_size": lambda said: int(said.get("video_temporal_patch_size") or 0),
        },
    ),
    "parakeet_encoder": Tower(
        _PARAKEET,
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "intermediate_size": 4096,
            "attention_bias": True,
            "convolution_bias": True,
            "conv_kernel_size": 9,
            "subsampling_factor": 8,
            "subsampling_conv_channels": 256,
            "num_mel_bins": 80,
            "subsampling_conv_kernel_size": 3,
            "subsampling_conv_stride": 2,
        },
        {
            "kernel_area": _area("subsampling_conv_kernel_size"),
            "behind_the_first": lambda said: _subsamplings(said) - 1,
            "bins": _bins_left,
            "inner": _heads_width,
        },
    ),
}
"""model_type of the tower's config -> what it holds."""

_OTHER_NAMES: Final = {
    "qwen2_vl": "qwen2_vl_vision",
    "qwen2_5_vl": "qwen2_5_vl_vision",
    "qwen3_vl": "qwen3_vl_vision",
    "qwen3_5": "qwen3_5_vision",
    "qwen3_5_moe": "qwen3_5_vision",
    "qwen3_5_moe_vision": "qwen3_5_vision",
    "parakeet": "parakeet_encoder",
}


def object_under(config: Config, key: str) -> Sub:
    """The object under `key` of a config.json document, an empty one where there is none; raises MinitronError for
    what is no object."""
    found = config.get(key)
    if not isinstance(found, Mapping | None):
        raise MinitronError(f"config.json: {key} is {found!r:.40}, not an object; copy config.json again.")
    return found or {}


def tower_of(config: Config, key: str, default: str) -> tuple[Tower, Sub]:
    """The tower under `key` of a config.json document, of the type `default` where it does not say, and its config.

    Raises MinitronError for a type that TOWERS does not have."""
    found = object_under(config, key)
    named = str(found.get("model_type") or default)
    tower = TOWERS.get(_OTHER_NAMES.get(named, named))
    if tower is None:
        raise MinitronError(
            f"config.json: {key} is of the type {named!r}, of which Minitron does not know how large it is; the known "
            f"types are {', '.join(sorted(TOWERS))}."
        )
    return tower, found
