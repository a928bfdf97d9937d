"""Jamba: mixers of the first Mamba, attention without positions once in a period of layers, and after each of them an
MLP or, once in a period of its own, a mixture of experts."""

from __future__ import annotations

from math import lcm
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    BEFORE,
    LAYER,
    MIXTURE_LABELS,
    STORED_TIED_HEAD,
    gain,
    gated_mlp,
    outside,
    routed_experts,
)
from minitron.model.families.family import Cache, Family, Rule
from minitron.model.families.layer_lists import layer_count
from minitron.model.families.mamba import STATES_1, mamba1
from minitron.model.steps import UNSCORED

_MIXER: Final = mamba1(LAYER + "mamba.", bias="mamba_proj_bias", conv_bias="mamba_conv_bias", norms=True)

_ATTENTION: Final = (
    Rule(ATTENTION + "q_proj.weight", "query_head*qk_head_dim, hidden", "attention", scaled_by="qk_head_dim"),
    Rule(ATTENTION + "k_proj.weight", "kv_head*qk_head_dim, hidden", "attention"),
    Rule(ATTENTION + "v_proj.weight", "kv_head*v_head_dim, hidden", "attention"),
    Rule(ATTENTION + "o_proj.weight", "hidden, query_head*v_head_dim", "attention"),
)

_FEED_FORWARD: Final = LAYER + "feed_forward."
_MLP: Final = gated_mlp(_FEED_FORWARD)
_EXPERTS: Final = routed_experts(_FEED_FORWARD, memory=_FEED_FORWARD, router="router")

_KEYS_AND_VALUES: Final = Cache(
    "kv_head*qk_head_dim + kv_head*v_head_dim",
    attends="query_head*qk_head_dim + query_head*v_head_dim",
    called="attention layers",
)

_ATTENTION_PERIOD: Final = ("attn_layer_period", 8, "attn_layer_offset", 4)
_EXPERT_PERIOD: Final = ("expert_layer_period", 2, "expert_layer_offset", 1)
"""(key, its class default) of a period and of the first layer in it."""


def _layer(mixer: tuple[Rule, ...], mlp: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (gain(LAYER + "input_layernorm", BEFORE), *mixer, gain(LAYER + "pre_ff_layernorm", BEFORE), *mlp)


def _period(config: Config, keys: tuple[str, int, str, int]) -> tuple[int, int]:
    """(period, first layer in it); raises MinitronError where the layer is not in the period."""
    key, default, first_key, first_default = keys
    period, first = number_of(config, key, default, least=1), number_of(config, first_key, first_default)
    if first >= period:
        raise MinitronError(f"config.json: {first_key} = {first} is not smaller than {key} = {period}; correct it.")
    return period, first


def _named(config: Config, keys: tuple[str, int, str, int]) -> list[bool]:
    """Of every layer whether it is the one of its period."""
    period, first = _period(config, keys)
    return [layer % period == first for layer in range(layer_count(config))]


def _mixes(config: Config) -> bool:
    """Whether there are experts: a single one is an MLP."""
    return number_of(config, "num_experts", 16, least=1) > 1


def _layout(config: Config) -> str:
    attends, sparse = _named(config, _ATTENTION_PERIOD), _named(config, _EXPERT_PERIOD)
    letters = {(False, False): "M", (True, False): "*", (False, True): "E", (True, True): "A"}
    return "".join(letters[one] for one in zip(attends, (_mixes(config) and each for each in sparse), strict=True))


def _together(config: Config) -> int:
    periods = [_period(config, _ATTENTION_PERIOD)[0]]
    if _mixes(config):
        periods.append(_period(config, _EXPERT_PERIOD)[0])
    return lcm(*periods)


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Find periods that say which of the kept layers are which; the config's own where they still do."""
    kinds = [_ATTENTION_PERIOD, *([_EXPERT_PERIOD] if _mixes(config) else [])]
    for keys in kinds:
        wanted = [_named(config, keys)[layer] for layer in kept]
        periods = [_period(config, keys)]
        periods += [(period, first) for period in range(1, len(kept) + 2) for first in range(period)]
        for period, first in periods:
            if [layer % period == first for layer in range(len(kept))] == wanted:
                config[keys[0]], config[keys[2]] = period, first
                break
        else:
            raise MinitronError(
                f"the layers that are kept have no period, and a jamba config can only say one ({keys[0]}, {keys[2]}); "
                f"leave out runs of {_together(config)} layers."
            )
    config["num_hidden_layers"] = len(kept)


def _head_width(config: Config) -> int:
    return number_of(config, "hidden_size") // number_of(config, "num_attention_heads", least=1)


def _channels(config: Config) -> int:
    return number_of(config, "mamba_expand", 2) * number_of(config, "hidden_size")


JAMBA = Family(
    name="jamba",
    model_types=("jamba",),
    letters={"M": "mamba", "*": "attention", "E": "mamba_moe", "A": "attention_moe"},
    kind_labels={
        "mamba": "Mamba + MLP",
        "mamba_moe": "Mamba + mixture of experts",
        "attention": MIXTURE_LABELS["dense"],
        "attention_moe": MIXTURE_LABELS["moe"],
    },
    rules={
        "model": outside(norm="model.final_layernorm"),
        "mamba": _layer(_MIXER, _MLP),
        "mamba_moe": _layer(_MIXER, _EXPERTS),
        "attention": _layer(_ATTENTION, _MLP),
        "attention_moe": _layer(_ATTENTION, _EXPERTS),
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head"),
        kv_head={"default": 8},
        qk_head_dim={"default": _head_width},
        v_head_dim={"default": _head_width},
        ssm_state={"keys": ("mamba_d_state",), "default": 16, "step": UNSCORED},
        conv_kernel={"keys": ("mamba_d_conv",), "default": 4},
        time_step_rank={"keys": ("mamba_dt_rank",)},
        # An expert is as wide as an MLP, and there is no model with a single one: it would be an MLP.
        expert={"default": 16, "least": 2},
        expert_ffn={"keys": ("intermediate_size",)},
        inner_channel={"keys": (), "follows": HIDDEN, "default": _channels},
    ),
    cache={
        "mamba": STATES_1,
        "mamba_moe": STATES_1,
        "attention": _KEYS_AND_VALUES,
        "attention_moe": _KEYS_AND_VALUES,
    },
    layout=_layout,
    edit_layout=_edit,
    together=_together,
    defaults={"mamba_conv_bias": True, "num_experts_per_tok": 2},
    extras=(STORED_TIED_HEAD,),
    plain_head=True,
    summary="Mamba or attention, and gated MLP or mixture of experts, in every layer (Jamba)",
)
