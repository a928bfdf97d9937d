"""Kimi Linear: three layers of delta attention, whose states fade channel by channel, to one of attention over a latent
without position; mixtures of experts with shared ones in all but the first layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, Config, entry, number_of, rows, write_entry
from minitron.model.families.decoders import (
    ATTENTION,
    EXPERTS_IN_GROUPS,
    INSIDE,
    LAYER,
    MLP,
    ROTARY_FREQUENCIES,
    gain,
    gated_mlp,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.deepseek import LATENT, LATENT_AXES, LATENT_HEADS, latent_attention
from minitron.model.families.family import Cache, Family, Rule
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types, keep_listed, layer_count

_NESTED: Final = "linear_attn_config"
_ATTENDS: Final = f"{_NESTED}.full_attn_layers"
_LINEAR: Final = f"{_NESTED}.kda_layers"
"""Lists of layers, which count from 1."""

DELTA_HEADS: Final = "delta_head*delta_dim"


def convolutions(at: str) -> tuple[Rule, ...]:
    """Those over queries, keys and values, which are one in memory."""
    return tuple(
        Rule(f"{at}{part}_conv1d.weight", f"{DELTA_HEADS}, 1, conv_kernel", "ssm", memory=ATTENTION + "conv1d.weight")
        for part in "qkv"
    )


def _delta_attention() -> tuple[Rule, ...]:
    """Kimi delta attention (Moonshot AI 2025, Kimi Linear, arXiv 2510.26692, section 3)."""
    at, fades = ATTENTION, ATTENTION + "forget_gate."
    return (
        *(Rule(f"{at}{part}_proj.weight", f"{DELTA_HEADS}, hidden", "ssm") for part in "qkv"),
        *convolutions(at),
        Rule(at + "f_a_proj.weight", "delta_rank, hidden", "ssm", memory=fades + "f_a_proj.weight"),
        Rule(at + "f_b_proj.weight", f"{DELTA_HEADS}, delta_rank", "ssm", memory=fades + "f_b_proj.weight"),
        Rule(at + "dt_bias", DELTA_HEADS, "ssm", memory=fades + "dt_bias"),
        Rule(at + "A_log", "1, 1, delta_head, 1", "ssm", memory=fades + "A_log"),
        Rule(at + "b_proj.weight", "delta_head, hidden", "ssm"),
        Rule(at + "g_a_proj.weight", "delta_rank, hidden", "ssm"),
        Rule(at + "g_b_proj.weight", f"{DELTA_HEADS}, delta_rank", "ssm"),
        gain(at + "o_norm", INSIDE, "delta_dim", "ssm"),
        Rule(at + "o_proj.weight", f"hidden, {DELTA_HEADS}", "ssm"),
    )


_MIXERS: Final = {"linear": _delta_attention(), "attention": latent_attention()}

_SPARSE: Final = "block_sparse_moe."

_EXPERTS: Final = (
    *routed_experts(LAYER + _SPARSE, memory=MLP, names=("w1", "w3", "w2")),
    Rule(
        LAYER + _SPARSE + "gate.e_score_correction_bias",
        "expert",
        "moe_router",
        memory=MLP + "gate.e_score_correction_bias",
        router=True,
    ),
    *(
        replace(rule, memory=MLP + rule.name.removeprefix(LAYER + _SPARSE))
        for rule in gated_mlp(LAYER + _SPARSE + "shared_experts.", axis="shared_ffn", component="moe_shared")
    ),
)
_DENSE: Final = gated_mlp(LAYER + "(mlp|block_sparse_moe).")
"""The released checkpoint calls it mlp, transformers writes the other name."""

DELTA_STATES: Final = Cache(
    conv_channels=f"{DELTA_HEADS} + {DELTA_HEADS} + {DELTA_HEADS}",
    conv_taps="conv_kernel",
    state="delta_head*delta_dim*delta_dim",
    scans=f"{DELTA_HEADS} + {DELTA_HEADS}",
    called="linear attention layers",
)

_WIDTH: Final = (f"{_NESTED}.head_dim", "linear_head_dim")

_AXES: Final = (
    *LATENT_AXES,
    Axis(
        "delta_head",
        "linear attention's heads",
        (f"{_NESTED}.num_heads", "linear_num_heads"),
        default=32,
        split="even",
    ),
    Axis(
        "delta_dim",
        "linear attention's head width",
        _WIDTH,
        default=128,
        fixed="the recurrent state is its square",
    ),
    Axis(
        "delta_rank",
        "rank of linear attention's gates",
        _WIDTH,
        default=128,
        fixed="it is the width of a head",
    ),
)


def _words(config: Config) -> list[str]:
    """`linear_attention` or `full_attention` for every layer."""
    if config.get("layer_types") is not None or not _names_layers(config):
        return attention_types(config, lambda layer: FULL if layer and layer % 4 == 0 else LINEAR, (FULL, LINEAR))
    words = dict.fromkeys(_listed(config, _ATTENDS), FULL) | dict.fromkeys(_listed(config, _LINEAR), LINEAR)
    if set(words) != set(range(1, layer_count(config) + 1)):
        raise MinitronError(
            f"config.json: {_ATTENDS} and {_LINEAR} do not name the layers 1 to {layer_count(config)}; correct them."
        )
    return [words[layer] for layer in sorted(words)]


def _names_layers(config: Config) -> bool:
    return all(entry(config, key) is not None for key in (_ATTENDS, _LINEAR))


def _listed(config: Config, key: str) -> list[int]:
    given = entry(config, key)
    if not isinstance(given, list | tuple) or any(isinstance(one, bool) or not isinstance(one, int) for one in given):
        raise MinitronError(f"config.json: {key} is not a list of layer numbers; correct it.")
    return list(given)


def is_dense(config: Config, first: int = 1) -> list[bool]:
    """Whether each layer has an MLP in the place of experts, the `first` ones where the config does not say."""
    count, given = layer_count(config), config.get("mlp_layer_types")
    if given is None:
        first = number_of(config, "first_k_dense_replace", first)
        return [layer < first for layer in range(count)]
    if not isinstance(given, list | tuple) or len(given) != count:
        raise MinitronError(
            f"config.json: mlp_layer_types does not have one entry for each of the {count} layers; correct it."
        )
    if unknown := [word for word in given if word not in ("dense", "sparse")]:
        raise MinitronError(f"config.json: mlp_layer_types has the kind {unknown[0]!r}; known are dense and sparse.")
    return [word == "dense" for word in given]


def _letters(config: Config) -> str:
    letters = {(LINEAR, True): "l", (FULL, True): "*", (LINEAR, False): "L", (FULL, False): "A"}
    return "".join(letters[pair] for pair in zip(_words(config), is_dense(config), strict=True))


def _keep_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Every way in which a config says which layer is which, for the layers that stay: engines read one or another."""
    words, dense = _words(config), is_dense(config)
    if _names_layers(config):
        for key, word in ((_ATTENDS, FULL), (_LINEAR, LINEAR)):
            write_entry(config, key, [new for new, layer in enumerate(kept, 1) if words[layer] == word])
    else:
        config["layer_types"] = words
    if config.get("mlp_layer_types") is None or "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = sum(dense[layer] for layer in kept)
    keep_listed(config, kept)


def _shared_width(config: Config) -> int:
    count = number_of(config, "n_shared_experts", 1) if "n_shared_experts" in config else None
    return number_of(config, "moe_intermediate_size", 1024) * number_of(
        config, "num_shared_experts", count or 1, least=1
    )


KIMI_LINEAR: Final = Family(
    name="kimi_linear",
    model_types=("kimi_linear",),
    letters={"l": "linear", "*": "attention", "L": "linear_moe", "A": "attention_moe"},
    kind_labels={
        "linear": "delta attention + MLP",
        "attention": "latent attention + MLP",
        "linear_moe": "delta attention + mixture of experts",
        "attention_moe": "latent attention + mixture of experts",
    },
    rules={
        # Whatever tie_word_embeddings says: transformers builds the output layer in any case.
        "model": tuple(replace(rule, when="") for rule in outside()),
        **{kind: pre_norm(mixer, _DENSE) for kind, mixer in _MIXERS.items()},
        **{f"{kind}_moe": pre_norm(mixer, _EXPERTS) for kind, mixer in _MIXERS.items()},
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "expert_ffn"),
        query_head=LATENT_HEADS["query_head"],
        v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": 128},
        conv_kernel={"keys": (f"{_NESTED}.short_conv_kernel_size", "linear_conv_kernel_dim"), "default": 4},
        expert=EXPERTS_IN_GROUPS
        | {"keys": ("num_experts", "num_local_experts"), "default": 256}
        | {"least_key": "num_experts_per_token", "equal_groups_key": "num_expert_group"},
        shared_ffn={"keys": (), "follows": "expert_ffn", "default": _shared_width},
        extra=_AXES,
    ),
    cache={
        **dict.fromkeys(("linear", "linear_moe"), DELTA_STATES),
        **dict.fromkeys(("attention", "attention_moe"), LATENT),
    },
    layout=_letters,
    edit_layout=_keep_layers,
    defaults={"num_experts_per_token": 8, "num_expert_group": 1, "topk_group": 1},
    spellings={"num_experts_per_tok": "num_experts_per_token", "n_group": "num_expert_group"},
    extras=(ROTARY_FREQUENCIES,),
    summary="delta attention or latent attention without position, mixture of experts with shared ones (Kimi Linear)",
)
