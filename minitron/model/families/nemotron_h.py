"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba-2, attention, relu2 MLPs and mixtures of experts in one stack."""

from typing import Any

from minitron.model.families.family import Cache, Config, Family, Rule, Size
from minitron.model.families.layouts import LETTERS, WORDS, keep_layers, read_layout

ROOT = "(model|backbone)."
LAYER = ROOT + "layers.{layer}."

# in_proj stacks the gate z, then x, B and C, then one time step a head.
X = "mamba_head*mamba_head_dim"
BC = "mamba_group*ssm_state"
IN_PROJ = f"{X} + {X} + {BC} + {BC} + mamba_head"
CONV = f"{X} + {BC} + {BC}"


def _mixers(layer: str) -> dict[str, tuple[Rule, ...]]:
    """kind -> the tensors of its mixer, under the given layer prefix."""
    at = layer + "mixer."
    return {
        "mamba": (
            Rule(at + "in_proj.weight", f"{IN_PROJ}, hidden", "ssm"),
            Rule(at + "in_proj.bias", IN_PROJ, "ssm", when="use_bias"),
            Rule(at + "conv1d.weight", f"{CONV}, 1, conv_kernel", "ssm"),
            Rule(at + "conv1d.bias", CONV, "ssm", when="use_conv_bias"),
            Rule(at + "A_log", "mamba_head", "ssm"),
            Rule(at + "D", "mamba_head", "ssm"),
            Rule(at + "dt_bias", "mamba_head", "ssm"),
            Rule(at + "norm.weight", X, "ssm", norm_group="mamba_group"),
            Rule(at + "out_proj.weight", f"hidden, {X}", "ssm"),
            Rule(at + "out_proj.bias", "hidden", "ssm", when="use_bias"),
        ),
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
            Rule(at + "gate.weight", "expert, hidden", "moe_router"),
            Rule(at + "gate.e_score_correction_bias", "expert", "moe_router"),
            # Without a latent space experts read and write the residual stream itself; with one (Nemotron 3 Super) the
            # router and the shared expert still do.
            Rule(at + "experts.{expert}.up_proj.weight", "expert_ffn, hidden", "moe_routed", when="!moe_latent_size"),
            Rule(at + "experts.{expert}.down_proj.weight", "hidden, expert_ffn", "moe_routed", when="!moe_latent_size"),
            Rule(at + "experts.{expert}.up_proj.weight", "expert_ffn, latent_in", "moe_routed", when="moe_latent_size"),
            Rule(
                at + "experts.{expert}.down_proj.weight", "latent_out, expert_ffn", "moe_routed", when="moe_latent_size"
            ),
            Rule(at + "fc1_latent_proj.weight", "latent_in, hidden", "moe_latent_proj", when="moe_latent_size"),
            Rule(at + "fc2_latent_proj.weight", "hidden, latent_out", "moe_latent_proj", when="moe_latent_size"),
            Rule(at + "shared_experts.up_proj.weight", "shared_ffn, hidden", "moe_shared"),
            Rule(at + "shared_experts.down_proj.weight", "hidden, shared_ffn", "moe_shared"),
        ),
    }


def _layer(layer: str) -> dict[str, tuple[Rule, ...]]:
    norm = Rule(layer + "norm.weight", "hidden", "norm", norm_group="1")
    return {kind: (norm, *rules) for kind, rules in _mixers(layer).items()}


def _mtp_layout(config: Config) -> str:
    # A config names the block's layers even where there is none; num_nextn_predict_layers says whether there is one.
    # The checkpoint holds one block however many tokens it is unrolled to predict.
    if not config.get("num_nextn_predict_layers"):
        return ""
    if pattern := config.get("mtp_hybrid_override_pattern"):
        return str(pattern)
    return "".join(WORDS[word] for word in config.get("mtp_layers_block_type") or ("attention", "moe"))


def _edit_layout(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    keep_layers(config, kept)


MTP_LAYER = "mtp.layers.{mtp_layer}."

NEMOTRON_H = Family(
    name="nemotron_h",
    model_types=("nemotron_h",),
    summary="Mamba-2, attention, MLP, mixture of experts (also latent, with shared experts), multi-token prediction "
    "(Nemotron-H, Nemotron Nano 2, Nemotron 3)",
    letters=LETTERS,
    rules={
        "model": (
            Rule(ROOT + "embedding(s|).weight", "vocab, hidden", "embedding"),
            Rule(ROOT + "norm_f.weight", "hidden", "norm", norm_group="1"),
            Rule(
                "lm_head.weight",
                "vocab, hidden",
                "lm_head",
                when="!tie_word_embeddings",
                tied_to=ROOT + "embedding(s|).weight",
            ),
        ),
        **_layer(LAYER),
        **{f"mtp_{kind}": rules for kind, rules in _layer(MTP_LAYER).items()},
    },
    mtp_rules=(
        Rule("mtp.layers.0.enorm.weight", "hidden", "mtp", norm_group="1"),
        Rule("mtp.layers.0.hnorm.weight", "hidden", "mtp", norm_group="1"),
        # The embedding of the next token beside the stream.
        Rule("mtp.layers.0.eh_proj.weight", "hidden, hidden + hidden", "mtp"),
        Rule("mtp.layers.{mtp_last}.final_layernorm.weight", "hidden", "mtp", norm_group="1"),
    ),
    sizes={
        "hidden": Size(("hidden_size",)),
        "vocab": Size(("vocab_size",)),
        "ffn": Size(("intermediate_size",)),
        "query_head": Size(("num_attention_heads",)),
        "kv_head": Size(("num_key_value_heads",), default=lambda config: int(config["num_attention_heads"])),
        # Keys and queries meet in one space, values and outputs in another; the config gives both one width.
        "qk_head_dim": Size(("head_dim", "attention_head_dim"), default=lambda config: 128),
        "v_head_dim": Size(("head_dim", "attention_head_dim"), default=lambda config: 128),
        "mamba_head": Size(("mamba_num_heads",)),
        "mamba_head_dim": Size(("mamba_head_dim",)),
        "mamba_group": Size(("n_groups", "mamba_n_groups")),
        "ssm_state": Size(("ssm_state_size",)),
        "conv_kernel": Size(("conv_kernel", "mamba_d_conv"), default=lambda config: 4),
        "expert": Size(("n_routed_experts", "num_local_experts")),
        "expert_ffn": Size(("moe_intermediate_size",)),
        "shared_ffn": Size(("moe_shared_expert_intermediate_size",)),
        "latent_in": Size(("moe_latent_size",)),
        "latent_out": Size(("moe_latent_size",)),
    },
    grouped={"query_head": "kv_head", "mamba_head": "mamba_group"},
    cache={
        "attention": Cache(kv_per_token="kv_head*qk_head_dim + kv_head*v_head_dim"),
        "mamba": Cache(conv_channels=CONV, ssm_state="mamba_head*mamba_head_dim*ssm_state"),
    },
    layout=read_layout,
    edit_layout=_edit_layout,
    mtp_layout=_mtp_layout,
    experts_per_token="num_experts_per_tok",
    fixed=frozenset({"vocab", "conv_kernel", "mamba_group"}),
)
