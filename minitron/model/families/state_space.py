"""Mamba, Falcon-Mamba and Mamba-2: nothing but state-space mixers, with no attention beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import BEFORE, STORED_TIED_HEAD, gain, outside
from minitron.model.families.family import Cache, Family, Norm, Rule
from minitron.model.families.layer_lists import keep_listed, layer_count
from minitron.model.families.mamba import STATES, STATES_1, mamba1, mamba2
from minitron.model.steps import UNSCORED

_LAYER: Final = "backbone.layers.{layer}."
_NO_GAIN: Final = "it passes a norm without a gain that could make up for fewer"

_STATE: Final = {"keys": ("state_size",), "default": 16, "step": UNSCORED}


def _state_space(
    model_type: str,
    *,
    mixer: tuple[Rule, ...],
    cache: Cache,
    axes: Mapping[str, Axis],
    label: str,
    defaults: Mapping[str, Any] | None = None,
    summary: str,
    equal: tuple[tuple[str, str], ...] = (),
) -> Family:
    """A family of which every layer is a norm and a mixer."""
    return Family(
        name=model_type,
        model_types=(model_type,),
        letters={"M": "mamba"},
        kind_labels={"mamba": label},
        rules={
            "model": outside(norm="backbone.norm_f", embedding="backbone.embeddings"),
            "mamba": (gain(_LAYER + "norm", BEFORE), *mixer),
        },
        axes=axes,
        cache={"mamba": cache},
        layout=lambda config: "M" * layer_count(config),
        edit_layout=keep_listed,
        defaults={"use_conv_bias": True, "expand": 2} | dict(defaults or {}),
        equal=equal,
        extras=(STORED_TIED_HEAD,),
        plain_head=True,
        summary=summary,
    )


def _channels(config: Config) -> int:
    return number_of(config, "expand", 2) * number_of(config, "hidden_size")


_MIXER: Final = mamba1(_LAYER + "mixer.", bias="use_bias", conv_bias="use_conv_bias")

MAMBA = _state_space(
    "mamba",
    mixer=_MIXER,
    cache=STATES_1,
    axes=rows(
        *("hidden", "vocab", "time_step_rank"),
        # The class computes their number from expand, and takes over the one that a config gives.
        inner_channel={"default": _channels},
        ssm_state=_STATE,
        conv_kernel={"default": 4},
    ),
    label="Mamba",
    defaults={"tie_word_embeddings": True},
    summary="Mamba (state-spaces' Mamba)",
)

FALCON_MAMBA = _state_space(
    "falcon_mamba",
    mixer=_MIXER,
    cache=STATES_1,
    axes=rows(
        *("hidden", "vocab"),
        inner_channel={"default": _channels},
        time_step_rank={"fixed": _NO_GAIN},
        ssm_state=_STATE | {"fixed": _NO_GAIN},
        conv_kernel={"default": 4},
    ),
    label="Mamba",
    defaults={"tie_word_embeddings": True},
    summary="Mamba with normalised time steps, B and C (Falcon-Mamba)",
)

MAMBA2 = _state_space(
    "mamba2",
    mixer=mamba2(
        _LAYER + "mixer.", norm=Norm("inside", group="mamba_group"), bias="use_bias", conv_bias="use_conv_bias"
    ),
    cache=STATES,
    axes=rows(
        *("hidden", "vocab"),
        mamba_head={"keys": ("num_heads",), "default": 128},
        mamba_head_dim={"keys": ("head_dim",), "default": 64},
        mamba_group={"default": 8},
        ssm_state={"keys": ("state_size",), "default": 128},
        conv_kernel={"default": 4},
    ),
    label="Mamba-2",
    equal=(("mamba_head*mamba_head_dim", "expand*hidden"),),
    summary="Mamba-2 (state-spaces' Mamba-2, Codestral Mamba)",
)
