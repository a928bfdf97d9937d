"""Zamba2: Mamba-2 in every layer, and before some of them a block of attention and MLP that is stored once and used by
several, with small adapters and an output projection for each use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    BEFORE,
    INSIDE,
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gain,
    outside,
)
from minitron.model.families.family import Cache, Family, Norm, Rule
from minitron.model.families.mamba import STATES, mamba2

_WHY: Final = "its layers share blocks, and what one of them loses all lose"

_WORDS: Final = {"mamba": "M", "linear_attention": "M", "hybrid": "H"}
_DEFAULT: Final = "M" + "MMMMMH" * 7 + "MMMMH" + "MMMH" + "MM"

_SHARED: Final = LAYER + "shared_transformer."
_USES: Final = "model.layers.{owner}.shared_transformer."
_BOTH_STREAMS: Final = "hidden + hidden"
"""The stream beside the embedding."""

_HYBRID: Final = Cache(
    keys_values=KEYS_AND_VALUES.keys_values,
    conv_channels=STATES.conv_channels,
    conv_taps=STATES.conv_taps,
    state=STATES.state,
    attends=KEYS_AND_VALUES.attends,
    scans=STATES.scans,
    checkpoints=STATES.checkpoints,
    called="hybrid layers",
)


def _mamba(at: str, norm: str = "norm") -> tuple[Rule, ...]:
    """A norm, counted under the heading `norm`, and a mixer."""
    mixer = mamba2(at + "mamba.", norm=Norm("inside", group="mamba_group"), bias="add_bias_linear", conv_bias="")
    return (gain(at + "input_layernorm", BEFORE, component=norm), *mixer)


def _adapter(at: str, reads: str, writes: str, component: str, *, when: str = "") -> tuple[Rule, Rule]:
    """The two linears that one use of a block has beside a shared one."""
    at = _USES + at + "_adapter_list.{use}."
    return (
        Rule(at + "0.weight", f"adapter_rank, {reads}", component, when=when),
        Rule(at + "1.weight", f"{writes}, adapter_rank", component, when=when),
    )


def _reading_both(rule: Rule) -> Rule:
    """A projection of attention, which reads the embedding beside the stream."""
    return replace(rule, shape=rule.shape.replace(", hidden", f", {_BOTH_STREAMS}"))


_MLP: Final = _SHARED + "feed_forward."

_BLOCK: Final = tuple(
    replace(rule, also_run_by=("hybrid",))
    for rule in (
        gain(_SHARED + "input_layernorm", INSIDE, _BOTH_STREAMS),
        *map(_reading_both, attention(at=_SHARED + "self_attn.")),
        gain(_SHARED + "pre_ff_layernorm", INSIDE),
        Rule(_MLP + "gate_up_proj.weight", "ffn + ffn, hidden", "mlp"),
        Rule(_MLP + "gate_up_proj.bias", "ffn + ffn", "mlp", when="add_bias_linear"),
        Rule(_MLP + "down_proj.weight", "hidden, ffn", "mlp"),
        Rule(_MLP + "down_proj.bias", "hidden", "mlp", when="add_bias_linear"),
    )
)

_USE: Final = (
    *(
        rule
        for name in ("q", "k", "v")
        for rule in _adapter(
            f"self_attn.linear_{name}", _BOTH_STREAMS, _BOTH_STREAMS, "attention", when="use_shared_attention_adapter"
        )
    ),
    *_adapter("feed_forward.gate_up_proj", "hidden", "ffn + ffn", "mlp"),
    Rule(LAYER + "linear.weight", "hidden, hidden", "hybrid_linear"),
    *_mamba(LAYER + "mamba_decoder.", "ssm"),
)


def _hybrids(config: Config) -> tuple[str, list[int]]:
    """(M or H a layer, the layers with H)."""
    words = config.get("layers_block_type")
    if words is None:
        letters = _DEFAULT
    elif isinstance(words, list | tuple) and words and all(word in tuple(_WORDS) for word in words):
        letters = "".join(_WORDS[word] for word in words)
    else:
        raise MinitronError(f"config.json: layers_block_type is not a list of {', '.join(_WORDS)}; correct it.")
    return letters, [layer for layer, letter in enumerate(letters) if letter == "H"]


def _layout(config: Config) -> str:
    letters, hybrids = _hybrids(config)
    if not config.get("tie_word_embeddings", True):
        raise MinitronError(
            "config.json: tie_word_embeddings is false, and transformers then shares no blocks among the layers of a "
            "zamba2 model either; use a model with a tied embedding."
        )
    kv_heads = config.get("num_key_value_heads")
    if config.get("use_shared_attention_adapter") and kv_heads not in (None, _heads(config)):
        raise MinitronError(
            f"config.json: num_key_value_heads = {kv_heads} is not the number of query heads, and zamba2 models with "
            "use_shared_attention_adapter need it to be; use a model without these adapters."
        )
    owners = hybrids[: number_of(config, "num_mem_blocks", 1, least=1)]
    return "".join("S" if layer in owners else letter for layer, letter in enumerate(letters))


def _elsewhere(config: Config) -> Mapping[int, Mapping[str, int]]:
    hybrids = _hybrids(config)[1]
    blocks = number_of(config, "num_mem_blocks", 1, least=1)
    return {layer: {"owner": hybrids[use % blocks], "use": use} for use, layer in enumerate(hybrids)}


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    raise MinitronError(f"no layer of a zamba2 model can be left out, as {_WHY}; keep all of them.")


def _heads(config: Config) -> int:
    return number_of(config, "num_attention_heads", 32, least=1)


_SIZES: Final[dict[str, dict[str, Any]]] = {
    "hidden": {"keys": ("hidden_size",)},
    "ffn": {"keys": ("intermediate_size",), "default": lambda config: 4 * number_of(config, "hidden_size")},
    "query_head": {"keys": ("num_attention_heads",), "default": 32},
    "kv_head": {"default": _heads},
    "head_dim": {
        "keys": ("attention_head_dim", "head_dim"),
        "default": lambda config: 2 * number_of(config, "hidden_size") // _heads(config),
    },
    "mamba_head": {"keys": ("n_mamba_heads",), "default": 8},
    "mamba_head_dim": {
        "keys": ("mamba_headdim",),
        "default": lambda config: (
            number_of(config, "mamba_expand", 2)
            * number_of(config, "hidden_size")
            // number_of(config, "n_mamba_heads", 8, least=1)
        ),
    },
    "mamba_group": {"keys": ("mamba_ngroups",), "default": 1},
    "ssm_state": {"keys": ("mamba_d_state",), "default": 64},
    "conv_kernel": {"keys": ("mamba_d_conv",), "default": 4},
}

ZAMBA2 = Family(
    name="zamba2",
    model_types=("zamba2",),
    letters={"M": "mamba", "S": "shared", "H": "hybrid"},
    kind_labels={
        "mamba": "Mamba-2",
        "shared": "attention + MLP, shared with others, + Mamba-2",
        "hybrid": "the attention + MLP of another layer, + Mamba-2",
    },
    rules={
        "model": outside(norm="model.final_layernorm"),
        "mamba": _mamba(LAYER),
        "shared": (*_BLOCK, *_USE),
        "hybrid": _USE,
    },
    axes=rows(
        "vocab",
        extra=(Axis("adapter_rank", "rank of adapters", ("adapter_rank",), default=128, fixed=_WHY),),
        **{name: own | {"fixed": _WHY} for name, own in _SIZES.items()},
    ),
    cache={"mamba": STATES, "shared": _HYBRID, "hybrid": _HYBRID},
    layout=_layout,
    edit_layout=_edit,
    together=lambda config: len(_layout(config)),
    elsewhere=_elsewhere,
    defaults={"mamba_expand": 2, "tie_word_embeddings": True},
    equal=(("mamba_head*mamba_head_dim", "mamba_expand*hidden"),),
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    plain_head=True,
    summary="Mamba-2, and blocks of attention and MLP that layers share (Zamba2: planned and inspected, not cut)",
)
