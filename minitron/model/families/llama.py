"""Llama 2 and 3, SmolLM2, Mistral: rotary attention and a gated MLP in every layer."""

from typing import Any

from minitron.model.families.family import Cache, Config, Family, Rule, Size

LAYER = "model.layers.{layer}."


def _layout(config: Config) -> str:
    return "*" * int(config["num_hidden_layers"])


def _edit_layout(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    config["num_hidden_layers"] = len(kept)
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][layer] for layer in kept]


def _head_dim(config: Config) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral"),
    summary="attention and gated MLP, tied or untied embeddings (Llama 3, SmolLM2, Mistral)",
    letters={"*": "decoder"},
    rules={
        "model": (
            Rule("model.embed_tokens.weight", "vocab, hidden", "embedding"),
            Rule("model.norm.weight", "hidden", "norm", norm_group="1"),
            Rule(
                "lm_head.weight",
                "vocab, hidden",
                "lm_head",
                when="!tie_word_embeddings",
                tied_to="model.embed_tokens.weight",
            ),
        ),
        "decoder": (
            Rule(LAYER + "input_layernorm.weight", "hidden", "norm", norm_group="1"),
            Rule(LAYER + "self_attn.q_proj.weight", "query_head*head_dim, hidden", "attention"),
            Rule(LAYER + "self_attn.k_proj.weight", "kv_head*head_dim, hidden", "attention"),
            Rule(LAYER + "self_attn.v_proj.weight", "kv_head*head_dim, hidden", "attention"),
            Rule(LAYER + "self_attn.o_proj.weight", "hidden, query_head*head_dim", "attention"),
            Rule(LAYER + "self_attn.q_proj.bias", "query_head*head_dim", "attention", when="attention_bias"),
            Rule(LAYER + "self_attn.k_proj.bias", "kv_head*head_dim", "attention", when="attention_bias"),
            Rule(LAYER + "self_attn.v_proj.bias", "kv_head*head_dim", "attention", when="attention_bias"),
            Rule(LAYER + "self_attn.o_proj.bias", "hidden", "attention", when="attention_bias"),
            Rule(LAYER + "post_attention_layernorm.weight", "hidden", "norm", norm_group="1"),
            Rule(LAYER + "mlp.gate_proj.weight", "ffn, hidden", "mlp"),
            Rule(LAYER + "mlp.up_proj.weight", "ffn, hidden", "mlp"),
            Rule(LAYER + "mlp.down_proj.weight", "hidden, ffn", "mlp"),
            Rule(LAYER + "mlp.gate_proj.bias", "ffn", "mlp", when="mlp_bias"),
            Rule(LAYER + "mlp.up_proj.bias", "ffn", "mlp", when="mlp_bias"),
            Rule(LAYER + "mlp.down_proj.bias", "hidden", "mlp", when="mlp_bias"),
        ),
    },
    sizes={
        "hidden": Size(("hidden_size",)),
        "vocab": Size(("vocab_size",)),
        "ffn": Size(("intermediate_size",)),
        "query_head": Size(("num_attention_heads",)),
        "kv_head": Size(("num_key_value_heads",), default=lambda config: int(config["num_attention_heads"])),
        "head_dim": Size(("head_dim",), default=_head_dim),
    },
    grouped={"query_head": "kv_head"},
    cache={"decoder": Cache(kv_per_token="2*(kv_head*head_dim)")},
    layout=_layout,
    edit_layout=_edit_layout,
    # LlamaConfig insists on it even where head_dim is given and nothing needs it.
    multiples={"hidden": "query_head"},
    # Rotary embeddings pair the channels of a head by position: no choice of channels keeps the pairs' frequencies.
    fixed=frozenset({"vocab", "head_dim"}),
)
