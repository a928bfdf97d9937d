"""Falcon-H1: attention and Mamba-2 side by side in every layer, and a gated MLP; numbers of the config scale what
passes between them (Yang et al. 2022, arXiv 2203.03466), and no cut changes those."""

from __future__ import annotations

from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import AUTO, Config, number_of, rows
from minitron.model.families.decoders import (
    BEFORE,
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gain,
    gated_mlp,
    outside,
)
from minitron.model.families.family import Cache, Family, Norm
from minitron.model.families.layer_lists import keep_listed, layer_count
from minitron.model.families.logits import Logits
from minitron.model.families.mamba import STATES, mamba2

_BOTH: Final = Cache(
    keys_values=KEYS_AND_VALUES.keys_values,
    conv_channels=STATES.conv_channels,
    conv_taps=STATES.conv_taps,
    state=STATES.state,
    attends=KEYS_AND_VALUES.attends,
    scans=STATES.scans,
    checkpoints=STATES.checkpoints,
    called="hybrid layers",
)

_MIXER: Final = mamba2(
    LAYER + "mamba.",
    norm=Norm("inside", group="mamba_group", gated_after="mamba_norm_before_gate"),
    normalises="mamba_rms_norm",
    bias="mamba_proj_bias",
    output_bias="projectors_bias",
    conv_bias="mamba_conv_bias",
)


def _inner(config: Config) -> int:
    """All heads' channels together, as the config says them outright or by hidden_size."""
    if "mamba_d_ssm" in config and config["mamba_d_ssm"] is None:
        return number_of(config, "mamba_expand", 2) * number_of(config, "hidden_size")
    return number_of(config, "mamba_d_ssm", 1024)


def _heads(config: Config) -> int:
    return number_of(config, "mamba_n_heads", 128, least=1)


def _head_width(config: Config) -> int:
    return _inner(config) // _heads(config)


def _width(config: Config) -> int:
    said = config.get("mamba_d_head")
    return _head_width(config) if said in (None, AUTO) else number_of(config, "mamba_d_head")


def _settle(config: dict[str, Any]) -> None:
    """mamba_d_ssm repeats what heads and their width make."""
    if _inner(config) != _heads(config) * _width(config):
        config["mamba_d_ssm"] = _heads(config) * _width(config)


def _layout(config: Config) -> str:
    if _inner(config) != _heads(config) * _width(config):
        raise MinitronError(
            f"config.json: mamba_n_heads * mamba_d_head = {_heads(config) * _width(config)} and mamba_d_ssm = "
            f"{_inner(config)} differ, and transformers requires them equal for falcon_h1 models; make them equal."
        )
    return "H" * layer_count(config)


FALCON_H1 = Family(
    name="falcon_h1",
    model_types=("falcon_h1",),
    letters={"H": "hybrid"},
    kind_labels={"hybrid": "attention beside Mamba-2, + MLP"},
    rules={
        "model": outside(norm="model.final_layernorm"),
        "hybrid": (
            gain(LAYER + "input_layernorm", BEFORE),
            *_MIXER,
            *attention(bias="attention_bias", output_bias="attention_bias"),
            gain(LAYER + "pre_ff_layernorm", BEFORE),
            *gated_mlp(LAYER + "feed_forward.", bias="mlp_bias"),
        ),
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim"),
        kv_head={"default": 8},
        mamba_head={"keys": ("mamba_n_heads",), "default": 128},
        mamba_head_dim={"keys": ("mamba_d_head",), "default": _head_width},
        mamba_group={"keys": ("mamba_n_groups",), "default": 1},
        ssm_state={"keys": ("mamba_d_state",), "default": 256},
        conv_kernel={"keys": ("mamba_d_conv",), "default": 4},
    ),
    cache={"hybrid": _BOTH},
    layout=_layout,
    edit_layout=keep_listed,
    settle=_settle,
    defaults={"mamba_conv_bias": True, "mamba_norm_before_gate": True, "lm_head_multiplier": 1.0},
    logits=Logits(factor="lm_head_multiplier"),
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    # A layer returns a tuple of its states alone.
    beside_states=1,
    plain_head=True,
    summary="attention beside Mamba-2 and gated MLP, in every layer (Falcon-H1)",
)
