"""LFM2 and LFM3: short convolutions between two gates, attention in some layers, and in every layer an MLP or, in
LFM2-MoE but for the first layers, a mixture of experts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import AXES, HIDDEN, Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    AFTER,
    ATTENTION,
    BEFORE,
    INSIDE,
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    edit_lists,
    gain,
    gated_mlp,
    outside,
    routed_experts,
)
from minitron.model.families.factors import factor_of
from minitron.model.families.family import Cache, Family, Rule
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, keep_listed, layer_indices

_CONV: Final = "conv"
"""The word of configs for a layer of short convolution."""

_MLP: Final = LAYER + "feed_forward."
_NAMES: Final = ("w1", "w3", "w2")


def _short_convolution(at: str) -> tuple[Rule, ...]:
    """A gate before and one behind a convolution over a few tokens (Liquid AI 2025, LFM2, arXiv 2511.23404)."""
    both = "conv_channel + conv_channel + conv_channel"
    return (
        Rule(at + "in_proj.weight", f"{both}, hidden", "conv"),
        Rule(at + "in_proj.bias", both, "conv", when="conv_bias"),
        Rule(at + "conv.weight", "conv_channel, 1, conv_kernel", "conv"),
        Rule(at + "conv.bias", "conv_channel", "conv", when="conv_bias"),
        Rule(at + "out_proj.weight", "hidden, conv_channel", "conv"),
        Rule(at + "out_proj.bias", "hidden", "conv", when="conv_bias"),
    )


def _layer(mixer: tuple[Rule, ...], mlp: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (gain(LAYER + "operator_norm", BEFORE), *mixer, gain(LAYER + "ffn_norm", BEFORE), *mlp)


_MIXERS: Final = {
    "conv": _short_convolution(LAYER + "conv."),
    "attention": attention(at=ATTENTION, head_norms=INSIDE, output="out_proj", names=("q_layernorm", "k_layernorm")),
}
_DENSE: Final = gated_mlp(_MLP, names=_NAMES)
_EXPERTS: Final = (
    *routed_experts(_MLP, memory=_MLP, names=_NAMES),
    Rule(_MLP + "expert_bias", "expert", "moe_router", when="use_expert_bias", router=True),
)

_LAST_INPUTS: Final = Cache(conv_channels="conv_channel", conv_taps="conv_kernel", called="short convolution layers")


def _width(config: Config, number: int) -> int:
    """What transformers makes of the number under the key: two thirds, times a factor, rounded up."""
    if not config.get("block_auto_adjust_ff_dim", True):
        return number
    width, factor = int(2 * number / 3), factor_of(config, "block_ffn_dim_multiplier", 1.0)
    unit = number_of(config, "block_multiple_of", 256, least=1)
    return unit * -(-int(factor * width) // unit)


_SHARED: Final[dict[str, Mapping[str, Any]]] = {
    # The released configs say some sizes again, for engines that read them there.
    "hidden": {"keys": ("hidden_size", "block_dim")},
    "query_head": {"keys": ("num_attention_heads", "num_heads")},
    "kv_head": {"default": 8},
    "head_dim": {},
    "conv_kernel": {"keys": ("conv_L_cache",), "default": 3},
}

_CHANNELS: Final = Axis(
    "conv_channel",
    "channels of short convolutions",
    # As many as the residual stream has, though others: each layer chooses its own.
    ("hidden_size", "conv_dim", "conv_dim_out"),
    step=AXES[HIDDEN].step,
    scored_at_input=True,
    split="even",
)

_SPELLINGS: Final = {"tie_embedding": "tie_word_embeddings"}


def _attends(config: Config) -> Callable[[int], str]:
    """The layers that full_attn_idxs names attend, all where it is absent."""
    if config.get("full_attn_idxs") is None:
        return lambda layer: FULL
    named = layer_indices(config, "full_attn_idxs")
    return lambda layer: FULL if layer in named else _CONV


def _letters(config: Config) -> str:
    words = attention_types(config, _attends(config), known=(FULL, _CONV))
    return "".join("*" if word == FULL else "c" for word in words)


LFM2: Final = Family(
    name="lfm2",
    model_types=("lfm2",),
    letters={"c": "conv", "*": "attention"},
    kind_labels={"conv": "short convolution + MLP", "attention": "attention + MLP"},
    rules={
        "model": outside(norm="model.embedding_norm"),
        **{kind: _layer(mixer, _DENSE) for kind, mixer in _MIXERS.items()},
    },
    axes=rows(
        "vocab",
        ffn={
            "keys": ("block_ff_dim", "intermediate_size"),
            "default": 12288,
            "from_key": _width,
            "beside": {"block_auto_adjust_ff_dim": False},
        },
        extra=(_CHANNELS,),
        **_SHARED,
    ),
    cache={"conv": _LAST_INPUTS, "attention": KEYS_AND_VALUES},
    layout=_letters,
    edit_layout=keep_listed,
    defaults={"tie_word_embeddings": True},
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="short convolutions or attention, and gated MLP (LFM2)",
    spellings=_SPELLINGS,
)


def _moe_letters(config: Config) -> str:
    if config.get("layer_types") is None:
        raise MinitronError("config.json has no layer_types; a lfm2_moe model needs it; add it.")
    dense = number_of(config, "num_dense_layers", 2)
    letters = ("c*", "CA")
    return "".join(
        letters[layer >= dense][word == FULL] for layer, word in enumerate(attention_types(config, known=(FULL, _CONV)))
    )


def _moe_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The dense layers come first, and so do those of them that stay."""
    dense = number_of(config, "num_dense_layers", 2)
    config["num_dense_layers"] = sum(layer < dense for layer in kept)
    keep_listed(config, kept)


LFM2_MOE: Final = Family(
    name="lfm2_moe",
    model_types=("lfm2_moe",),
    letters={"c": "conv", "*": "attention", "C": "conv_moe", "A": "attention_moe"},
    kind_labels={
        "conv": "short convolution + MLP",
        "attention": "attention + MLP",
        "conv_moe": "short convolution + mixture of experts",
        "attention_moe": "attention + mixture of experts",
    },
    rules={
        "model": outside(norm="model.embedding_norm"),
        **{kind: _layer(mixer, _DENSE) for kind, mixer in _MIXERS.items()},
        **{f"{kind}_moe": _layer(mixer, _EXPERTS) for kind, mixer in _MIXERS.items()},
    },
    axes=rows("vocab", "ffn", "expert_ffn", expert={"default": 32}, extra=(_CHANNELS,), **_SHARED),
    cache={
        **dict.fromkeys(("conv", "conv_moe"), _LAST_INPUTS),
        **dict.fromkeys(("attention", "attention_moe"), KEYS_AND_VALUES),
    },
    layout=_moe_letters,
    edit_layout=_moe_layers,
    defaults={"tie_word_embeddings": True, "use_expert_bias": True, "num_experts_per_tok": 4},
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="short convolutions or attention, mixture of experts or gated MLP (LFM2-8B-A1B)",
    spellings=_SPELLINGS,
)


def _period(config: Config) -> Callable[[int], str]:
    return lambda layer: FULL if layer % 4 == 2 else SLIDING if layer % 4 == 0 and layer > 0 else _CONV


def _words(config: Config) -> list[str]:
    words = attention_types(config, _period(config), known=(FULL, SLIDING, _CONV))
    if SLIDING in words and config.get("sliding_window", 256) is None:
        raise MinitronError(
            "config.json: sliding_window is null, and some layers are sliding_attention; give the window or make them "
            "full_attention."
        )
    return words


def _lists(config: Config) -> Mapping[str, Any]:
    return {"layer_types": _words(config)}


def _sandwich(mixer: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """A layer whose blocks may have a norm behind them, too."""
    return (
        gain(LAYER + "operator_norm", BEFORE),
        *mixer,
        gain(LAYER + "post_operator_norm", AFTER, when="use_sandwich_norm"),
        gain(LAYER + "ffn_norm", BEFORE),
        *_DENSE,
        gain(LAYER + "post_ffn_norm", AFTER, when="use_sandwich_norm"),
    )


_GATED: Final = (
    *attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE),
    # A gate a head.
    Rule(
        ATTENTION + "gate_proj.weight",
        "query_head, hidden",
        "attention",
        when="use_attention_gate",
        memory=ATTENTION + "g_proj.weight",
    ),
)

LFM3: Final = Family(
    name="lfm3",
    model_types=("lfm3",),
    letters={"c": "conv", "*": "attention", "s": "sliding"},
    kind_labels={
        "conv": "short convolution + MLP",
        "attention": "gated attention + MLP",
        "sliding": "gated attention in a sliding window + MLP",
    },
    rules={
        "model": outside(norm="model.embedding_norm"),
        "conv": _sandwich(_MIXERS["conv"]),
        **dict.fromkeys(("attention", "sliding"), _sandwich(_GATED)),
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head"),
        kv_head={"default": 4},
        head_dim={"default": 128},
        conv_kernel={"keys": ("conv_L_cache",), "default": 7},
        extra=(replace(_CHANNELS, keys=("hidden_size",)),),
    ),
    cache={
        "conv": _LAST_INPUTS,
        "attention": KEYS_AND_VALUES,
        "sliding": replace(KEYS_AND_VALUES, window="sliding_window"),
    },
    layout=lambda config: "".join({FULL: "*", SLIDING: "s", _CONV: "c"}[word] for word in _words(config)),
    edit_layout=partial(edit_lists, _lists),
    defaults={
        "tie_word_embeddings": True,
        "sliding_window": 256,
        "use_sandwich_norm": True,
        "use_attention_gate": True,
    },
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="short convolutions or gated attention, whole or in a sliding window, and gated MLP (LFM3)",
)
