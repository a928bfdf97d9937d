"""Ling 3.0: five layers of delta attention to one of gated attention over a latent, and mixtures of experts with shared
ones in all but the first layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    EXPERTS_IN_GROUPS,
    INSIDE,
    LAYER,
    LAYERS_BEHIND,
    MLP,
    ROTARY_FREQUENCIES,
    gain,
    gated_mlp,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.deepseek import LATENT, LATENT_AXES, LATENT_HEADS, latent_attention, shared_mlp
from minitron.model.families.family import Family, Rule
from minitron.model.families.kimi import DELTA_HEADS, DELTA_STATES, convolutions, is_dense
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types, keep_listed

_AT: Final = LAYER + "(self_attn|attention)."
"""transformers' name of attention in memory, and that of checkpoints."""

_FADES: Final = ATTENTION + "forget_gate."
_OUTPUT: Final = _AT + "(o_proj|dense).weight"

_DELTA: Final = (
    *(Rule(f"{_AT}{part}_proj.weight", f"{DELTA_HEADS}, hidden", "ssm") for part in "qkv"),
    *convolutions(_AT),
    Rule(_AT + "f_proj.weight", f"{DELTA_HEADS}, hidden", "ssm", memory=_FADES + "f_proj.weight"),
    Rule(_AT + "dt_bias", DELTA_HEADS, "ssm", memory=_FADES + "dt_bias"),
    Rule(_AT + "A_log", "delta_head", "ssm", memory=_FADES + "A_log"),
    Rule(_AT + "b_proj.weight", "delta_head, hidden", "ssm"),
    Rule(_AT + "g_proj.weight", f"{DELTA_HEADS}, hidden", "ssm"),
    gain(_AT + "o_norm", INSIDE, "delta_dim", "ssm"),
    Rule(_OUTPUT, f"hidden, {DELTA_HEADS}", "ssm"),
)


def _gated_latent() -> tuple[Rule, ...]:
    """Latent attention without a rank of queries, whatever the config says of one, and with a gate a head."""
    found = []
    for rule in latent_attention():
        if "q_rank" not in rule.axes:
            name = rule.name.replace(ATTENTION, _AT).replace("o_proj", "(o_proj|dense)")
            found.append(replace(rule, name=name, when=rule.when.replace("!q_lora_rank", "")))
    return (*found, Rule(_AT + "g_proj.weight", "query_head, hidden", "attention"))


_MIXERS: Final = {"linear": _DELTA, "attention": _gated_latent()}

_EXPERTS: Final = (
    *routed_experts(),
    Rule(MLP + "gate.(e_score_correction_bias|expert_bias)", "expert", "moe_router", router=True),
    *shared_mlp(),
)


def _words(config: Config) -> list[str]:
    """The last of every layer_group_size layers attends where layer_types does not say."""
    period = number_of(config, "layer_group_size", 6, least=1)
    return attention_types(config, lambda layer: LINEAR if (layer + 1) % period else FULL, (FULL, LINEAR))


def _letters(config: Config) -> str:
    letters = {(LINEAR, True): "l", (FULL, True): "*", (LINEAR, False): "L", (FULL, False): "A"}
    return "".join(letters[pair] for pair in zip(_words(config), is_dense(config, 2), strict=True))


def _keep_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Which layer is which, said outright for those that stay."""
    dense = is_dense(config, 2)
    config["layer_types"] = _words(config)
    config["first_k_dense_replace"] = sum(dense[layer] for layer in kept)
    keep_listed(config, kept)


def _shared_width(config: Config) -> int:
    return number_of(config, "moe_intermediate_size") * number_of(config, "num_shared_experts", 1, least=1)


# A config that transformers has written says the sizes of linear attention apart, one that was released does not.
_DELTA_AXES: Final = (
    Axis(
        "delta_head",
        "linear attention's heads",
        ("linear_num_heads",),
        default=lambda config: number_of(config, "num_attention_heads", 32),
        split="even",
    ),
    Axis(
        "delta_dim",
        "linear attention's head width",
        ("linear_head_dim", "head_dim"),
        default=128,
        fixed="the recurrent state is its square",
    ),
)

BAILING_HYBRID: Final = Family(
    name="bailing_hybrid",
    model_types=("bailing_hybrid",),
    letters={"l": "linear", "*": "attention", "L": "linear_moe", "A": "attention_moe"},
    kind_labels={
        "linear": "delta attention + MLP",
        "attention": "gated latent attention + MLP",
        "linear_moe": "delta attention + mixture of experts",
        "attention_moe": "gated latent attention + mixture of experts",
    },
    rules={
        # Whatever tie_word_embeddings says: transformers builds the output layer in any case.
        "model": tuple(replace(rule, when="") for rule in outside(embedding="model.(embed_tokens|word_embeddings)")),
        **{kind: pre_norm(mixer, gated_mlp()) for kind, mixer in _MIXERS.items()},
        **{f"{kind}_moe": pre_norm(mixer, _EXPERTS) for kind, mixer in _MIXERS.items()},
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "expert_ffn"),
        query_head=LATENT_HEADS["query_head"],
        v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": 128},
        conv_kernel={"keys": ("linear_conv_kernel_dim", "short_conv_kernel_size"), "default": 4},
        expert=EXPERTS_IN_GROUPS
        | {"keys": ("num_experts", "num_local_experts"), "default": 512}
        | {"least_key": "num_experts_per_token", "equal_groups_key": "num_expert_group"},
        shared_ffn={"keys": (), "follows": "expert_ffn", "default": _shared_width},
        extra=(*(row for row in LATENT_AXES if row.name != "q_rank"), *_DELTA_AXES),
    ),
    cache={
        **dict.fromkeys(("linear", "linear_moe"), DELTA_STATES),
        **dict.fromkeys(("attention", "attention_moe"), LATENT),
    },
    layout=_letters,
    edit_layout=_keep_layers,
    defaults={
        "num_experts_per_token": 8,
        "num_expert_group": 8,
        "topk_group": 4,
        "num_nextn_predict_layers": 1,
    },
    spellings={"num_experts_per_tok": "num_experts_per_token", "n_group": "num_expert_group"},
    extras=(ROTARY_FREQUENCIES, LAYERS_BEHIND),
    summary="delta attention or gated latent attention, mixture of experts with shared ones (Ling 3.0)",
)
