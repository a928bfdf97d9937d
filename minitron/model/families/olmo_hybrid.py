"""OLMo Hybrid: three gated delta nets, which read the stream through a norm, to one layer of attention, which writes to
it through one; a gated MLP in every layer."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    AFTER,
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
)
from minitron.model.families.delta_nets import KEY, STATES, VALUE, VALUE_HEADS, WIDTHS
from minitron.model.families.family import Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types, layer_count

_NET: Final = LAYER + "linear_attn."


def _renamed(on_disk: str, in_memory: str, norm: Norm) -> Rule:
    """A norm under either name, of which transformers writes the first."""
    return replace(gain(f"{LAYER}({on_disk}|{in_memory})", norm), memory=f"{LAYER}{in_memory}.weight")


def _delta_net() -> tuple[Rule, ...]:
    """A gated delta net whose projections and convolutions stand apart."""
    parts = {"q": KEY, "k": KEY, "v": VALUE}
    return (
        *(Rule(f"{_NET}{part}_proj.weight", f"{size}, hidden", "ssm") for part, size in parts.items()),
        Rule(_NET + "a_proj.weight", "linear_value_head, hidden", "ssm"),
        Rule(_NET + "b_proj.weight", "linear_value_head, hidden", "ssm"),
        Rule(_NET + "g_proj.weight", f"{VALUE}, hidden", "ssm"),
        *(
            Rule(f"{_NET}{part}_conv1d.weight", f"{size}, 1, conv_kernel", "ssm", memory=_NET + "conv1d.weight")
            for part, size in parts.items()
        ),
        Rule(_NET + "A_log", "linear_value_head", "ssm"),
        Rule(_NET + "dt_bias", "linear_value_head", "ssm"),
        gain(_NET + "o_norm", INSIDE, "linear_value_dim", "ssm"),
        Rule(_NET + "o_proj.weight", f"hidden, {VALUE}", "ssm"),
    )


_LINEAR: Final = (
    _renamed("attention_layer_norm", "input_layernorm", BEFORE),
    *_delta_net(),
    _renamed("feedforward_layer_norm", "post_attention_layernorm", BEFORE),
    *gated_mlp(),
)

_ATTENTION: Final = (
    *attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE, norms_over_heads=True),
    _renamed("feedforward_layer_norm", "post_attention_layernorm", AFTER),
    *gated_mlp(),
    gain(LAYER + "post_feedforward_layernorm", AFTER),
)


def _heads(config: Config) -> int:
    return number_of(config, "num_attention_heads")


def _key_dim(config: Config) -> int:
    heads = number_of(config, "linear_num_key_heads", _heads(config), least=1)
    return int(0.75 * number_of(config, "hidden_size") / heads)


def _value_dim(config: Config) -> int:
    return 2 * number_of(config, "linear_key_head_dim", _key_dim(config))


_DEFAULTS: Final = {"linear_key_head": _heads, "linear_key_dim": _key_dim, "linear_value_dim": _value_dim}


def _words(config: Config) -> list[str]:
    """Every fourth layer attends, or the last of fewer, where layer_types does not say."""
    last = layer_count(config) - 1
    words = attention_types(
        config, lambda layer: FULL if layer % 4 == 3 or layer == last < 3 else LINEAR, known=(FULL, LINEAR)
    )
    if len(set(words)) < 2:
        raise MinitronError(
            f"config.json: all layers are {words[0]}, and transformers asks for both {LINEAR} and {FULL} in "
            "olmo_hybrid models; keep a layer of each."
        )
    return words


def _lists(config: Config) -> Mapping[str, Any]:
    return {"layer_types": _words(config)}


OLMO_HYBRID: Final = Family(
    name="olmo_hybrid",
    model_types=("olmo_hybrid",),
    letters={"L": "linear", "*": "attention"},
    kind_labels={"linear": "gated delta net + MLP", "attention": "attention + MLP"},
    rules={"model": outside(), "linear": _LINEAR, "attention": _ATTENTION},
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "kv_head", "head_dim"),
        conv_kernel={"keys": ("linear_conv_kernel_dim",), "default": 4},
        extra=(
            *(replace(row, default=_DEFAULTS[row.name]) for row in WIDTHS),
            replace(VALUE_HEADS, default=_heads),
        ),
    ),
    cache={"linear": STATES, "attention": KEYS_AND_VALUES},
    layout=lambda config: "".join("*" if word == FULL else "L" for word in _words(config)),
    edit_layout=partial(edit_lists, _lists),
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="gated delta nets or attention with queries and keys normalised over all heads, gated MLP (OLMo Hybrid)",
)
