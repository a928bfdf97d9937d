"""Config entries that speak of every layer, and how they are rewritten when only some layers stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import AXES, LAYER, Config, number_of, shown, whole

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
LINEAR: Final = "linear_attention"

OLDER_WORDS: Final = {
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
    "mamba": LINEAR,
}
"""What layer_types called kinds of layers before transformers 5 -> what it calls them; it reads both."""

SIZES: Final = ("moe_topk", "moe_intermediate_size", "num_shared_expert")
"""Keys that may give a size for every layer."""

LISTS: Final = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "layers_block_type",
    "attn_type_list",
    "indexer_types",
    *SIZES,
)
"""Keys whose lists have one entry a layer."""

INDICES: Final = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "no_rope_layer_indices")
"""Keys whose lists name layers by their number."""


def keep_listed(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Leave only the layers `kept` in every list of `config` that speaks of layers, and count them."""
    for key in LISTS:
        if isinstance(config.get(key), list):
            if len(config[key]) <= kept[-1]:
                raise MinitronError(f"config.json: {key} does not have one entry for each layer; correct it.")
            config[key] = [config[key][layer] for layer in kept]
    for key in INDICES:
        if isinstance(config.get(key), list):
            named = layer_indices(config, key)
            config[key] = [new for new, layer in enumerate(kept) if layer in named]
    if "num_hidden_layers" in config:
        config["num_hidden_layers"] = len(kept)


def size_under(key: str, value: Any) -> int:
    """The size that a config gives under `key`, the same for every layer; raises MinitronError where it is none."""
    if key not in SIZES or not isinstance(value, list) or not value:
        return whole(key, value)
    if any(one != value[0] for one in value):
        raise MinitronError(
            f"config.json: {key} differs from layer to layer, which Minitron does not support; use a model in which it "
            "does not."
        )
    return whole(key, value[0])


def layer_indices(config: Config, key: str) -> frozenset[int]:
    """The layers that a list of numbers names, none where it is absent; raises MinitronError for anything else."""
    given = config.get(key) or ()
    if not isinstance(given, list | tuple) or any(isinstance(one, bool) or not isinstance(one, int) for one in given):
        raise MinitronError(f"config.json: {key} is not a list of layer numbers; correct it.")
    return frozenset(given)


def layer_count(config: Config) -> int:
    """num_hidden_layers; raises MinitronError where it is no positive whole number."""
    count = config.get("num_hidden_layers")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise MinitronError(f"config.json: num_hidden_layers is {shown(count)}; a model needs at least one layer.")
    if count > AXES[LAYER].largest:
        raise MinitronError(
            f"config.json: num_hidden_layers is {shown(count)}; Minitron reads at most {AXES[LAYER].largest:,} layers."
        )
    return count


def rotary_layers(config: Config) -> list[int]:
    """1 for every layer with rotary embeddings, 0 for every one without; raises MinitronError for a list too short."""
    given, count = config.get("no_rope_layers"), layer_count(config)
    if given is None:
        interval = number_of(config, "no_rope_layer_interval", 4, least=1)
        return [int((layer + 1) % interval != 0) for layer in range(count)]
    if not isinstance(given, list | tuple) or len(given) < count:
        raise MinitronError(
            f"config.json: no_rope_layers does not have one entry for each of the {count} layers; correct it."
        )
    return list(given)


def attention_types(
    config: Config, default: Callable[[int], str] = lambda layer: FULL, known: Sequence[str] = (FULL, SLIDING)
) -> list[str]:
    """One of the `known` words for every layer: what layer_types says, in these words or in older ones, else `default`
    of its number.

    Raises MinitronError for another word and for a list of another length."""
    count, given = layer_count(config), config.get("layer_types")
    if given is None:
        return [default(layer) for layer in range(count)]
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != count:
        raise MinitronError(
            f"config.json: layer_types does not have one entry for each of the {count} layers; correct it."
        )
    words = [OLDER_WORDS.get(word, word) if isinstance(word, str) else word for word in given]
    if unknown := [given[layer] for layer, word in enumerate(words) if word not in known]:
        raise MinitronError(
            f"config.json: layer_types has the kind {unknown[0]!r}; known for this family are {' and '.join(known)}."
        )
    return words
