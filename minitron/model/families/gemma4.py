"""Gemma 4: layers in a sliding window and full layers with heads of another width and number, whose keys may be their
values too; an MLP, in the mixtures beside experts; norms on both sides of everything, and a number that each layer
multiplies the stream by."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import AXES, Config, number_of, rows
from minitron.model.families.decoders import (
    AFTER,
    ATTENTION,
    BEFORE,
    INSIDE,
    LAYER,
    MLP,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    edit_lists,
    gain,
    gated_mlp,
    outside,
)
from minitron.model.families.family import Cache, Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types
from minitron.model.families.logits import Logits

_OVERRIDES: Final = "per_layer_config"
"""What transformers 5 writes in the place of the two keys of full layers: layer -> what differs there."""

_GLOBAL_KEYS: Final = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}


def _words(config: Config) -> list[str]:
    """The kind of every layer; transformers makes the last one a full one in any case."""
    words = attention_types(config, lambda layer: SLIDING if (layer + 1) % 6 else FULL)
    return [*words[:-1], FULL]


def _full(config: Config) -> list[int]:
    return [layer for layer, word in enumerate(_words(config)) if word == FULL]


def _number(layer: Any) -> int:
    """The layer that a key of the overrides names, with zeros before it or without; -1 for what is no number."""
    return int(layer) if str(layer).isdecimal() else -1


def _overrides(config: Config) -> Config:
    """What the full layers have of their own, where it is not said by the two keys.

    Raises MinitronError for what this family has no words for."""
    said = config.get(_OVERRIDES) or {}
    known = set(_GLOBAL_KEYS) if config.get("attention_k_eq_v") else {"head_dim"}
    own: list[Any] = list(said.values()) if isinstance(said, Mapping) else [None]
    fits = all(isinstance(one, Mapping) and one == own[0] and set(one) <= known for one in own)
    if not fits or (own and set(map(_number, said)) != set(_full(config))):
        raise MinitronError(
            f"config.json: {_OVERRIDES} says more than the {' and '.join(sorted(known))} that all full layers share; "
            f"Minitron supports no other {_OVERRIDES} for gemma4_text models; use a model without it."
        )
    found: Config = own[0] if own else {}
    return found


def _global_width(config: Config) -> int:
    if _OVERRIDES in config:
        return number_of(_overrides(config), "head_dim", number_of(config, "head_dim", 256))
    return 512


def _global_heads(config: Config) -> int:
    return number_of(_overrides(config), "num_key_value_heads", number_of(config, "num_key_value_heads", 4))


def _settle(config: dict[str, Any]) -> None:
    """Say of the full layers that there are what the two keys say, where the config says it layer by layer."""
    said = config.get(_OVERRIDES)
    if not said:
        return
    own = dict(next(iter(said.values())))
    own |= {key: config[other] for key, other in _GLOBAL_KEYS.items() if config.get(other) is not None}
    full = dict.fromkeys(_full(config), own)
    if {_number(layer): one for layer, one in said.items()} != full:
        digits = len(str(max(full)))
        config[_OVERRIDES] = {f"{layer:0{digits}d}": one for layer, one in full.items()}


def _layout(config: Config) -> str:
    _overrides(config)
    near, far = ("s", "k" if config.get("attention_k_eq_v") else "*")
    letters = "".join(near if word == SLIDING else far for word in _words(config))
    return letters.translate(_WITH_EXPERTS) if config.get("enable_moe_block") else letters


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    words = _words(config)
    if words[kept[-1]] != FULL:
        raise MinitronError(
            f"layer {kept[-1]} would be the last one, and transformers makes the last layer of a gemma4_text model a "
            f"full one, but this one is of the kind {SLIDING!r}; keep a full layer behind it."
        )
    edit_lists(lambda config: {"layer_types": _words(config)}, config, kept)
    _settle(config)


def _stays(config: Config) -> frozenset[int]:
    """The last layer: those before it are of the other kind."""
    words = _words(config)
    return frozenset({len(words) - 1}) if SLIDING in words else frozenset()


def _attention(queries: str, heads: str, width: str, *, values: bool) -> tuple[Rule, ...]:
    """Queries, keys, values unless the keys are them, and output; heads of queries and keys are normalised."""
    outputs = {"q_proj": queries, "k_proj": heads} | ({"v_proj": heads} if values else {})
    return (
        *(Rule(f"{ATTENTION}{name}.weight", f"{axis}*{width}, hidden", "attention") for name, axis in outputs.items()),
        Rule(ATTENTION + "o_proj.weight", f"hidden, {queries}*{width}", "attention"),
        *(
            Rule(f"{ATTENTION}{name}.bias", f"{axis}*{width}", "attention", when="attention_bias")
            for name, axis in outputs.items()
        ),
        Rule(ATTENTION + "o_proj.bias", "hidden", "attention", when="attention_bias"),
        gain(ATTENTION + "q_norm", INSIDE, width, "attention"),
        gain(ATTENTION + "k_norm", INSIDE, width, "attention"),
    )


_EXPERTS: Final = (
    gain(LAYER + "post_feedforward_layernorm_1", INSIDE),
    # The router has a norm of its own, whose output it divides by sqrt(hidden).
    Rule(
        LAYER + "router.scale",
        "hidden",
        "norm",
        norm=Norm("before", module=LAYER + "router.norm", over_root=True),
        router=True,
    ),
    Rule(LAYER + "router.proj.weight", "expert, hidden", "moe_router", router=True),
    Rule(LAYER + "router.per_expert_scale", "expert", "moe_router", router=True),
    gain(LAYER + "pre_feedforward_layernorm_2", BEFORE),
    Rule(LAYER + "experts.gate_up_proj", "expert, expert_ffn + expert_ffn, hidden", "moe_routed"),
    Rule(LAYER + "experts.down_proj", "expert, hidden, expert_ffn", "moe_routed"),
    gain(LAYER + "post_feedforward_layernorm_2", INSIDE),
)


def _layer(attention: tuple[Rule, ...], experts: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    return (
        gain(LAYER + "input_layernorm", BEFORE),
        *attention,
        gain(LAYER + "post_attention_layernorm", AFTER),
        gain(LAYER + "pre_feedforward_layernorm", BEFORE),
        *gated_mlp(MLP),
        *experts,
        gain(LAYER + "post_feedforward_layernorm", AFTER),
        Rule(LAYER + "layer_scalar", "1", "norm"),
    )


_SLIDING: Final = ("query_head", "kv_head", "head_dim")
_FULL: Final = ("query_head", "kv_head", "global_head_dim")
_KEYS_ARE_VALUES: Final = ("global_query_head", "global_kv_head", "global_head_dim")

_KINDS: Final = {
    "s": ("sliding", _SLIDING, True, "attention in a sliding window + MLP"),
    "*": ("full", _FULL, True, "attention + MLP"),
    "k": ("shared", _KEYS_ARE_VALUES, False, "attention whose keys are its values + MLP"),
}
"""letter -> (kind, axes of queries, keys and widths, whether there are values, label) of a layer without experts."""

_EXPERT_LETTERS: Final = {"s": "e", "*": "E", "k": "K"}
_WITH_EXPERTS: Final = str.maketrans(_EXPERT_LETTERS)


def _cache(letter: str) -> Cache:
    queries, heads, width = _KINDS[letter][1]
    return Cache(
        f"2*({heads}*{width})",
        window="sliding_window" if letter == "s" else "",
        attends=f"2*({queries}*{width})",
        called="attention layers",
    )


_LETTERS: Final = {letter: kind for letter, (kind, *_) in _KINDS.items()}
_MIXTURES: Final = {_EXPERT_LETTERS[letter]: f"{kind}_moe" for letter, kind in _LETTERS.items()}
_RULES: Final = {kind: _attention(*axes, values=values) for kind, axes, values, _ in _KINDS.values()}

GEMMA4 = Family(
    name="gemma4_text",
    model_types=("gemma4_text",),
    letters=_LETTERS | _MIXTURES,
    kind_labels={kind: label for kind, _, _, label in _KINDS.values()}
    | {f"{kind}_moe": f"{label} beside a mixture of experts" for kind, _, _, label in _KINDS.values()},
    rules={"model": outside()}
    | {kind: _layer(rules) for kind, rules in _RULES.items()}
    | {f"{kind}_moe": _layer(rules, _EXPERTS) for kind, rules in _RULES.items()},
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "expert_ffn"),
        kv_head={"default": 4},
        head_dim={"default": 256},
        expert={"least_key": "top_k_experts"},
        extra=(
            replace(AXES["query_head"], name="global_query_head", group="global_kv_head"),
            replace(
                AXES["kv_head"],
                name="global_kv_head",
                label="KV heads of full layers",
                keys=("num_global_key_value_heads",),
                default=_global_heads,
                null=None,
            ),
            replace(
                AXES["head_dim"],
                name="global_head_dim",
                label="head width of full layers",
                keys=("global_head_dim",),
                default=_global_width,
                null=None,
            ),
        ),
    ),
    cache={kind: _cache(letter) for letter, kind in _LETTERS.items()}
    | {f"{kind}_moe": _cache(letter) for letter, kind in _LETTERS.items()},
    layout=_layout,
    edit_layout=_edit,
    settle=_settle,
    stays=_stays,
    defaults={"sliding_window": 512, "tie_word_embeddings": True, "hidden_size_per_layer_input": 256},
    known={"use_bidirectional_attention": (None, "vision")},
    refused={
        "hidden_size_per_layer_input": "embeddings of each layer's own, as in E2B and E4B",
        "num_kv_shared_layers": "layers that use the keys and values of another, as in E2B and E4B",
    },
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    scaled_stream=True,
    logits=Logits(cap="final_logit_softcapping"),
    summary="attention with normalised heads, five of six layers in a sliding window, gated MLP, in the mixture beside "
    "experts, norms on both sides of each (Gemma 4 31B and 26B-A4B without vision)",
)
