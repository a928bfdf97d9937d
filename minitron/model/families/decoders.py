"""The parts of which decoders with rotary attention are made: most families are a few of them put together.

    rotary_decoder("qwen3", layer=pre_norm(attention(head_norms=INSIDE), gated_mlp()))

A part is a tuple of rules.  `bias=` is None for none, "" for one that is always there, or the config key that says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, rows
from minitron.model.families.family import Cache, Config, Extra, Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, keep_listed, layer_count

LAYER: Final = "model.layers.{layer}."
ATTENTION: Final = LAYER + "self_attn."
MLP: Final = LAYER + "mlp."

QUERIES: Final = "query_head*head_dim"
KEYS: Final = "kv_head*head_dim"

KEYS_AND_VALUES: Final = Cache("2*(kv_head*head_dim)", attends="2*(query_head*head_dim)", called="attention layers")
"""What a layer of attention keeps, whose keys and values have one width."""

BEFORE: Final = Norm("before")
AFTER: Final = Norm("after")
INSIDE: Final = Norm("inside")
FINAL: Final = Norm("final")

ROTARY_FREQUENCIES: Final = Extra(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "rotary frequencies")
STORED_TIED_HEAD: Final = Extra(
    r"lm_head\.weight",
    "copy of the tied embedding",
    when="tie_word_embeddings",
)

STACKED: Final = "stacked_experts"
STACKED_EXPERTS: Final = {STACKED: r"^(?!mtp\.)(.*\.)?layers\.\d+\.mlp\.experts\.gate_up_proj$"}
"""For Family.storage: checkpoints that hold the experts of a layer as one tensor."""
LAYERS_BEHIND: Final = Extra(
    r"model\.layers\.(?P<layer>\d+)\..*",
    "layers of multi-token prediction",
    behind_the_last="num_nextn_predict_layers",
)
"""Layers that predict a token more each, which transformers does not build with the model."""

EXPERTS_IN_GROUPS: Final[dict[str, Any]] = {
    "keys": ("n_routed_experts", "num_local_experts"),
    "equal_groups_key": "n_group",
    "chosen_groups_key": "topk_group",
    "least_in_group": 2,
}
"""The row of experts of which a router takes the best of the best groups; a group is as good as its two best."""

LABELS: Final = {"decoder": "attention + MLP", "sliding": "attention in a sliding window + MLP"}
"""kind of a layer -> how reports call it."""

MIXTURE_LABELS: Final = {"moe": "attention + mixture of experts", "dense": "attention + MLP"}

Lists = Callable[[Config], Mapping[str, Any]]
"""config -> config entries that say outright what would follow from the number of a layer."""


def gain(name: str, norm: Norm, shape: str = "hidden", component: str = "norm", *, when: str = "") -> Rule:
    """The gain of a norm; `name` is its module."""
    return Rule(f"{name}.weight", shape, component, when=when, norm=norm)


def outside(
    final: Norm = FINAL, *, norm: str = "model.norm", embedding: str = "model.embed_tokens"
) -> tuple[Rule, ...]:
    """Embedding, final norm and output layer."""
    tied = f"{embedding}.weight"
    return (
        Rule(tied, "vocab, hidden", "embedding"),
        gain(norm, final),
        Rule("lm_head.weight", "vocab, hidden", "lm_head", when="!tie_word_embeddings", tied_to=tied),
    )


def attention(
    *,
    bias: str | None = None,
    output_bias: str | None = None,
    head_norms: Norm | None = None,
    head_norms_when: str = "",
    norms_over_heads: bool = False,
    at: str = ATTENTION,
    output: str = "o_proj",
    names: tuple[str, str] = ("q_norm", "k_norm"),
) -> tuple[Rule, ...]:
    """Queries, keys, values and output; `head_norms` are the norms of queries and keys (where `head_norms_when` says
    so), each head's own or, with `norms_over_heads`, one over all heads."""
    found = [
        Rule(at + "q_proj.weight", f"{QUERIES}, hidden", "attention"),
        Rule(at + "k_proj.weight", f"{KEYS}, hidden", "attention"),
        Rule(at + "v_proj.weight", f"{KEYS}, hidden", "attention"),
        Rule(at + f"{output}.weight", f"hidden, {QUERIES}", "attention"),
    ]
    if bias is not None:
        found += [
            Rule(at + "q_proj.bias", QUERIES, "attention", when=bias),
            Rule(at + "k_proj.bias", KEYS, "attention", when=bias),
            Rule(at + "v_proj.bias", KEYS, "attention", when=bias),
        ]
    if output_bias is not None:
        found.append(Rule(at + f"{output}.bias", "hidden", "attention", when=output_bias))
    if head_norms is not None:
        shapes = (QUERIES, KEYS) if norms_over_heads else ("head_dim", "head_dim")
        found += [
            gain(at + name, head_norms, shape, "attention", when=head_norms_when)
            for name, shape in zip(names, shapes, strict=True)
        ]
    return tuple(found)


def gated_mlp(
    at: str = MLP,
    *,
    axis: str = "ffn",
    component: str = "mlp",
    bias: str | None = None,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Rule, ...]:
    """Gate, up and down."""
    gate, up, down = names
    found = [
        Rule(f"{at}{gate}.weight", f"{axis}, hidden", component),
        Rule(f"{at}{up}.weight", f"{axis}, hidden", component),
        Rule(f"{at}{down}.weight", f"hidden, {axis}", component),
    ]
    if bias is not None:
        found += [
            Rule(f"{at}{gate}.bias", axis, component, when=bias),
            Rule(f"{at}{up}.bias", axis, component, when=bias),
            Rule(f"{at}{down}.bias", "hidden", component, when=bias),
        ]
    return tuple(found)


def plain_mlp(at: str = MLP, *, bias: str | None = None) -> tuple[Rule, ...]:
    """Up and down, without a gate."""
    found = [Rule(f"{at}up_proj.weight", "ffn, hidden", "mlp"), Rule(f"{at}down_proj.weight", "hidden, ffn", "mlp")]
    if bias is not None:
        found += [
            Rule(f"{at}up_proj.bias", "ffn", "mlp", when=bias),
            Rule(f"{at}down_proj.bias", "hidden", "mlp", when=bias),
        ]
    return tuple(found)


def joined_gated_mlp(at: str = MLP) -> tuple[Rule, ...]:
    """Gate and up in one tensor, gate first, and down."""
    return (
        Rule(f"{at}gate_up_proj.weight", "ffn + ffn, hidden", "mlp"),
        Rule(f"{at}down_proj.weight", "hidden, ffn", "mlp"),
    )


def routed_experts(
    at: str = MLP,
    *,
    memory: str = MLP,
    router: str = "gate",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    stacked: str = "",
) -> tuple[Rule, ...]:
    """A router and gated experts, one tensor each on disk; in memory all experts' are one, gate and up together.

    `stacked` is the word of Family.storage for checkpoints that hold them as they are in memory."""
    gate = Rule(f"{at}{router}.weight", "expert, hidden", "moe_router", memory=f"{memory}{router}.weight", router=True)
    own = gated_mlp(f"{at}experts.{{expert}}.", axis="expert_ffn", component="moe_routed", names=names)
    both, down = f"{memory}experts.gate_up_proj", f"{memory}experts.down_proj"
    apart = f"!{stacked}" if stacked else ""
    found = [replace(rule, memory=place, when=apart) for rule, place in zip(own, (both, both, down), strict=True)]
    if stacked:
        found += [
            Rule(both, "expert, expert_ffn + expert_ffn, hidden", "moe_routed", when=stacked),
            Rule(down, "expert, hidden, expert_ffn", "moe_routed", when=stacked),
        ]
    return (gate, *found)


def pre_norm(mixer: tuple[Rule, ...], mlp: tuple[Rule, ...], norm: Norm = BEFORE) -> tuple[Rule, ...]:
    """A layer whose two blocks read the stream through a norm each."""
    return (
        gain(LAYER + "input_layernorm", norm),
        *mixer,
        gain(LAYER + "post_attention_layernorm", norm),
        *mlp,
    )


def post_norm(mixer: tuple[Rule, ...], mlp: tuple[Rule, ...], norm: Norm = AFTER) -> tuple[Rule, ...]:
    """A layer whose two blocks read the stream as it is and write to it through a norm each."""
    return (
        *mixer,
        gain(LAYER + "post_attention_layernorm", norm),
        *mlp,
        gain(LAYER + "post_feedforward_layernorm", norm),
    )


def sandwich(mixer: tuple[Rule, ...], mlp: tuple[Rule, ...], norm: Norm) -> tuple[Rule, ...]:
    """A layer whose two blocks have a norm before and one after."""
    before, after = replace(norm, role="before"), replace(norm, role="after")
    return (
        gain(LAYER + "input_layernorm", before),
        *mixer,
        gain(LAYER + "post_attention_layernorm", after),
        gain(LAYER + "pre_feedforward_layernorm", before),
        *mlp,
        gain(LAYER + "post_feedforward_layernorm", after),
    )


def rotary_decoder(
    *model_types: str,
    layer: tuple[Rule, ...],
    window: str = "",
    slides: Callable[[Config], Callable[[int], str]] | None = None,
    always_windowed: bool = False,
    lists: Lists | None = None,
    model: tuple[Rule, ...] | None = None,
    axes: Mapping[str, Axis] | None = None,
    labels: Mapping[str, str] | None = None,
    summary: str = "",
    **more: Any,
) -> Family:
    """A family of which every layer holds the same tensors.

    `window` is the config key of a sliding window.  `slides` gives, for a config, what each layer's attention is
    (`full_attention` or `sliding_attention`) where layer_types does not say; without it all layers are alike.
    Where it is `always_windowed` transformers asks for the window of a model without a layer that slides too.
    `lists` gives the config entries that say outright what else follows from a layer's number.
    `labels` are those of the kinds `decoder` and `sliding`, `more` goes to Family."""
    kinds: dict[str, tuple[Rule, ...]] = {"decoder": layer}
    cache = {"decoder": replace(KEYS_AND_VALUES, window="" if slides else window)}
    letters, layout, own_lists = {"*": "decoder"}, _alike, [] if lists is None else [lists]
    if slides is not None:
        kinds["sliding"], cache["sliding"] = layer, replace(KEYS_AND_VALUES, window=window)
        absent = more.get("defaults", {}).get(window)
        letters, layout = (
            letters | {"s": "sliding"},
            partial(_mixed, slides=slides, window=window, absent=absent, always=always_windowed),
        )
        own_lists.append(partial(_types, slides=slides))
    return Family(
        name=model_types[0],
        model_types=model_types,
        letters=letters,
        kind_labels={kind: (labels or LABELS)[kind] for kind in letters.values()},
        rules={"model": model or outside(), **kinds},
        axes=axes or DENSE,
        cache=cache,
        layout=layout,
        edit_layout=partial(edit_lists, partial(_together, own_lists)),
        extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
        summary=summary,
        **more,
    )


def mixture_decoder(
    *model_types: str,
    moe: tuple[Rule, ...],
    dense: tuple[Rule, ...] | None = None,
    layout: Callable[[Config], str] | None = None,
    types: Callable[[Config], Sequence[str]] | None = None,
    edit: Callable[[dict[str, Any], tuple[int, ...]], None] | None = None,
    model: tuple[Rule, ...] | None = None,
    cache: Cache = KEYS_AND_VALUES,
    window: str = "",
    axes: Mapping[str, Axis],
    summary: str = "",
    extras: tuple[Extra, ...] = (),
    **more: Any,
) -> Family:
    """A family of which every layer holds a mixture of experts (`moe`), or some an MLP instead (`dense`).

    `layout` gives the letters `E` and `-` of a config's layers; `edit` changes what the config says of them when only
    some stay, before its lists are cut.  `window` is the config key of how many tokens a layer attends to: every layer,
    or where `types` gives what each layer's attention is (`full_attention` or another word) those of another word."""
    kinds = {"E": "moe"} | ({} if dense is None else {"-": "dense"})
    rules = {"moe": moe} | ({} if dense is None else {"dense": dense})
    labels = {kind: MIXTURE_LABELS[kind] for kind in kinds.values()}
    caches = dict.fromkeys(
        kinds.values(), replace(cache, window="", chunked=False) if types else replace(cache, window=window)
    )
    mixtures = layout or (lambda config: "E" * layer_count(config))
    if types is not None:
        local = "in chunks" if cache.chunked else "in a sliding window"
        near = {letter: f"{kind}_{LOCAL}" for letter, kind in kinds.items()}
        rules |= {near[letter]: rules[kind] for letter, kind in kinds.items()}
        labels |= {
            near[letter]: labels[kind].replace("attention", f"attention {local}") for letter, kind in kinds.items()
        }
        caches |= dict.fromkeys(near.values(), replace(cache, window=window))
        kinds |= {_NEAR[letter]: kind for letter, kind in near.items()}
        mixtures = partial(_crossed, mixtures=mixtures, types=types)

    def edit_layout(config: dict[str, Any], kept: tuple[int, ...]) -> None:
        if edit is not None:
            edit(config, kept)
        keep_listed(config, kept)

    return Family(
        name=model_types[0],
        model_types=model_types,
        letters=kinds,
        kind_labels=labels,
        rules={"model": model or outside(), **rules},
        axes=axes,
        cache=caches,
        layout=mixtures,
        edit_layout=edit_layout,
        extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD, *extras),
        summary=summary,
        **more,
    )


LOCAL: Final = "local"
_NEAR: Final = {"E": "e", "-": "s"}
"""Letter of a layer -> that of one whose attention goes back some tokens only."""


def _crossed(config: Config, mixtures: Callable[[Config], str], types: Callable[[Config], Sequence[str]]) -> str:
    return "".join(
        letter if word == FULL else _NEAR[letter] for letter, word in zip(mixtures(config), types(config), strict=True)
    )


DENSE: Final = rows("hidden", "vocab", "ffn", "query_head", "kv_head", "head_dim")
"""The axes of a decoder with gated MLPs."""


def edit_lists(lists: Lists, config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Leave only the layers `kept`; what followed from a layer's number is said outright once the numbers change."""
    if kept != tuple(range(layer_count(config))):
        config.update(lists(config))
    keep_listed(config, kept)


def _alike(config: Config) -> str:
    return "*" * layer_count(config)


def _together(lists: Sequence[Lists], config: Config) -> Mapping[str, Any]:
    return {key: entries for one in lists for key, entries in one(config).items()}


def _mixed(
    config: Config, slides: Callable[[Config], Callable[[int], str]], window: str, absent: int | None, always: bool
) -> str:
    types = attention_types(config, slides(config))
    if (always or SLIDING in types) and config.get(window, absent) is None:
        raise MinitronError(
            f"config.json: {window} gives no number, and transformers asks for one "
            f"{'in every model of this type' if always else f'where layers are of the kind {SLIDING!r}'}; give one."
        )
    return "".join("s" if word == SLIDING else "*" for word in types)


def _types(config: Config, slides: Callable[[Config], Callable[[int], str]]) -> Mapping[str, Any]:
    return {"layer_types": attention_types(config, slides(config))}
