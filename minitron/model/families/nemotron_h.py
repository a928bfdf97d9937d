"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba-2, attention, relu2 MLPs and mixtures of experts in one stack."""

from dataclasses import replace
from typing import Any, Final

from minitron.model.axes import Config, rows
from minitron.model.families.decoders import EXPERTS_IN_GROUPS, gain
from minitron.model.families.family import Blocks, Cache, Extra, Family, Norm, Rule
from minitron.model.families.layouts import LETTERS, keep_layers, read_layout, read_pattern, read_words
from minitron.model.families.mamba import STATES, mamba2

ROOT = "(model|backbone)."
LAYER = ROOT + "layers.{layer}."


def _mixers(layer: str, memory: str) -> dict[str, tuple[Rule, ...]]:
    """kind -> the tensors of its mixer, under the given layer prefix on disk and in memory."""
    at, held = layer + "mixer.", memory + "mixer."
    return {
        "mamba": mamba2(at, norm=Norm("inside", group="mamba_group"), bias="use_bias", conv_bias="use_conv_bias"),
        "attention": (
            Rule(at + "q_proj.weight", "query_head*qk_head_dim, hidden", "attention", scaled_by="qk_head_dim"),
            Rule(at + "k_proj.weight", "kv_head*qk_head_dim, hidden", "attention"),
            Rule(at + "v_proj.weight", "kv_head*v_head_dim, hidden", "attention"),
            Rule(at + "o_proj.weight", "hidden, query_head*v_head_dim", "attention"),
        ),
        "mlp": (
            Rule(at + "up_proj.weight", "ffn, hidden", "mlp"),
            Rule(at + "up_proj.bias", "ffn", "mlp", when="mlp_bias"),
            Rule(at + "down_proj.weight", "hidden, ffn", "mlp"),
            Rule(at + "down_proj.bias", "hidden", "mlp", when="mlp_bias"),
        ),
        "moe": (
            Rule(at + "gate.weight", "expert, hidden", "moe_router", router=True),
            Rule(at + "gate.e_score_correction_bias", "expert", "moe_router", router=True),
            # Without a latent space experts read and write the residual stream itself; with one (Nemotron 3 Super) the
            # router and the shared expert still do.
            *_experts(at, held, "hidden", "hidden", when="!moe_latent_size"),
            *_experts(at, held, "latent_in", "latent_out", when="moe_latent_size"),
            Rule(at + "fc1_latent_proj.weight", "latent_in, hidden", "moe_latent_proj", when="moe_latent_size"),
            Rule(at + "fc2_latent_proj.weight", "hidden, latent_out", "moe_latent_proj", when="moe_latent_size"),
            Rule(at + "shared_experts.up_proj.weight", "shared_ffn, hidden", "moe_shared"),
            Rule(at + "shared_experts.up_proj.bias", "shared_ffn", "moe_shared", when="mlp_bias"),
            Rule(at + "shared_experts.down_proj.weight", "hidden, shared_ffn", "moe_shared"),
            Rule(at + "shared_experts.down_proj.bias", "hidden", "moe_shared", when="mlp_bias"),
        ),
    }


def _experts(at: str, held: str, reads: str, writes: str, *, when: str) -> tuple[Rule, Rule]:
    """The two tensors of each expert, which are rows of one in memory."""
    own = at + "experts.{expert}."
    return (
        Rule(own + "up_proj.weight", f"expert_ffn, {reads}", "moe_routed", when=when, memory=held + "experts.up_proj"),
        Rule(
            own + "down_proj.weight",
            f"{writes}, expert_ffn",
            "moe_routed",
            when=when,
            memory=held + "experts.down_proj",
        ),
    )


def _layer(layer: str, memory: str = "") -> dict[str, tuple[Rule, ...]]:
    """kind -> the tensors of a layer; `memory` is the prefix of the module that holds it, where it is another."""
    rules = {
        kind: (gain(layer + "norm", Norm("before")), *mixer) for kind, mixer in _mixers(layer, memory or layer).items()
    }
    if not memory:
        return rules
    return {kind: tuple(_moved(rule, layer, memory) for rule in own) for kind, own in rules.items()}


def _moved(rule: Rule, layer: str, memory: str) -> Rule:
    return replace(rule, memory=rule.memory or memory + rule.name.removeprefix(layer))


def _mtp_layout(config: Config) -> str:
    # A config names the block's layers even where there is none; num_nextn_predict_layers says whether there is one.
    # The checkpoint holds one block however many tokens it is unrolled to predict.
    if not config.get("num_nextn_predict_layers"):
        return ""
    if config.get("mtp_hybrid_override_pattern"):
        return read_pattern(config, "mtp_hybrid_override_pattern")
    return read_words(config, "mtp_layers_block_type") if config.get("mtp_layers_block_type") else "*E"


EXPERT_KEYS = (
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob"),
    *("routed_scaling_factor", "moe_intermediate_size", "moe_latent_size"),
    *("moe_shared_expert_intermediate_size", "moe_shared_expert_overlap"),
)
"""What configs say of experts and how tokens are sent to them."""


def _keep_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """As keep_layers.  A model that has no mixture left says nothing of experts: llama.cpp's converter takes one that
    does for a mixture."""
    keep_layers(config, kept)
    if "E" not in read_layout(config) + _mtp_layout(config):
        for key in EXPERT_KEYS:
            config.pop(key, None)


BLOCKS: Final = "block_configs"
MTP_BLOCKS: Final = "mtp_block_configs"


def _set_apart(config: dict[str, Any], layers: Blocks, ahead: Blocks) -> None:
    """The config of a nemotron_h_puzzle model (minitron.model.families.nemotron_h_puzzle), as published ones are: what
    blocks say stands in them alone."""
    mtp = _mtp_layout(config)
    told = {key for block in (*layers, *ahead) for key in block}
    config |= {"model_type": "nemotron_h_puzzle", "architectures": ["NemotronHPuzzleForCausalLM"]}
    config[BLOCKS] = _blocks(read_layout(config), layers)
    if mtp:
        config[MTP_BLOCKS] = _blocks(mtp, ahead)
    for key in told:
        config.pop(key, None)


def _blocks(letters: str, own: Blocks) -> list[dict[str, Any]]:
    return [{"block_type": LETTERS[letter]} | dict(block) for letter, block in zip(letters, own, strict=True)]


MTP_LAYER = "mtp.layers.{mtp_layer}."

NEMOTRON_H = Family(
    name="nemotron_h",
    model_types=("nemotron_h",),
    letters=LETTERS,
    kind_labels={"mamba": "Mamba-2", "attention": "attention", "mlp": "MLP", "moe": "mixture of experts"},
    rules={
        "model": (
            Rule(ROOT + "embeddings.weight", "vocab, hidden", "embedding"),
            gain(ROOT + "norm_f", Norm("final")),
            # Whatever tie_word_embeddings says: transformers and vLLM build it in any case.
            Rule("lm_head.weight", "vocab, hidden", "lm_head", tied_to=ROOT + "embeddings.weight"),
        ),
        **_layer(LAYER),
        # The block's own layers, which transformers does not build: names in memory are those of the module that
        # distillation builds of them.
        **{f"mtp_{kind}": rules for kind, rules in _layer(MTP_LAYER, "body.layers.{mtp_layer}.").items()},
    },
    # As transformers before 5.23 saved it.
    older_names={r"(model|backbone)\.embedding\.weight": r"\1.embeddings.weight"},
    mtp_rules=(
        Rule("mtp.layers.0.enorm.weight", "hidden", "mtp", norm=Norm("before"), memory="enorm.weight"),
        Rule("mtp.layers.0.hnorm.weight", "hidden", "mtp", norm=Norm("before"), memory="hnorm.weight"),
        # The embedding of the next token beside the stream.
        Rule("mtp.layers.0.eh_proj.weight", "hidden, hidden + hidden", "mtp", memory="eh_proj.weight"),
        Rule(
            "mtp.layers.{mtp_last}.final_layernorm.weight",
            "hidden",
            "mtp",
            norm=Norm("final"),
            memory="body.norm_f.weight",
        ),
    ),
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "mamba_head", "mamba_head_dim"),
        *("ssm_state", "expert_ffn", "latent_in", "latent_out"),
        kv_head={"default": 8},
        # Keys and queries meet in one space, values and outputs in another; the config gives both one width.
        qk_head_dim={"keys": ("head_dim", "attention_head_dim"), "default": 128},
        v_head_dim={"keys": ("head_dim", "attention_head_dim"), "default": 128},
        mamba_group={"keys": ("n_groups", "mamba_n_groups")},
        conv_kernel={"keys": ("conv_kernel", "mamba_d_conv"), "default": 4},
        expert=EXPERTS_IN_GROUPS,
        shared_ffn={"keys": ("moe_shared_expert_intermediate_size",)},
    ),
    cache={
        "attention": Cache(
            "kv_head*qk_head_dim + kv_head*v_head_dim",
            attends="query_head*qk_head_dim + query_head*v_head_dim",
            called="attention layers",
        ),
        "mamba": STATES,
    },
    layout=read_layout,
    edit_layout=_keep_layers,
    by_layer=("ffn", "expert", "expert_ffn", "shared_ffn"),
    set_apart=_set_apart,
    mtp_layout=_mtp_layout,
    defaults={"use_conv_bias": True, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    # Another table reads a config of this type that has blocks (NEMOTRON_H_PUZZLE); inside a larger model none does.
    refused={
        "block_configs": "sizes that differ from layer to layer",
        "per_layer_config": "sizes that differ from layer to layer",
    },
    # transformers passes over it, and so it is where the config does not say how its layers stand.
    extras=(Extra(r"mtp\..*", "the multi-token-prediction block", when="!num_nextn_predict_layers"),),
    summary="Mamba-2, attention, MLP, mixture of experts (also latent, with shared experts), multi-token prediction "
    "(Nemotron-H, Nemotron Nano 2, Nemotron 3)",
)
