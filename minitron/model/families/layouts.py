"""The dialects in which configs say which kind of layer stands where.

Every reader gives one letter a layer: M Mamba, * attention, - MLP, E mixture of experts.  A writer rewrites the
config in its own dialect when only some layers stay."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from minitron.errors import MinitronError

Config = Mapping[str, Any]

LETTERS: Final = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

# The words of released configs and those of transformers 5.
WORDS: Final = {
    "mamba": "M",
    "mamba2": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _read_pattern(config: Config, key: str) -> str:
    pattern = str(config[key])
    if unknown := set(pattern) - set(LETTERS):
        raise MinitronError(
            f"config.json: {key} has the letter {min(unknown)!r}; known are M Mamba, * attention, - MLP, E experts."
        )
    return pattern


def _read_words(config: Config, key: str) -> str:
    words = config[key]
    if unknown := [word for word in words if word not in WORDS]:
        raise MinitronError(f"config.json: {key} has the layer kind {unknown[0]!r}; known are {', '.join(WORDS)}.")
    return "".join(WORDS[word] for word in words)


def _read_attention_indices(config: Config, key: str) -> str:
    attention = set(config[key])
    return "".join("*" if layer in attention else "M" for layer in range(config["num_hidden_layers"]))


def _read_period(config: Config, key: str) -> str:
    period, offset = config[key], config.get("attn_layer_offset", 0)
    return "".join("*" if layer % period == offset else "M" for layer in range(config["num_hidden_layers"]))


def _read_interval(config: Config, key: str) -> str:
    interval = config[key]
    return "".join("*" if (layer + 1) % interval == 0 else "M" for layer in range(config["num_hidden_layers"]))


# A config may carry several of these keys; the first that is present and set wins, as in transformers, where an
# explicit list beats a pattern.
READERS: Final[dict[str, Callable[[Config, str], str]]] = {
    "layers_block_type": _read_words,
    "hybrid_override_pattern": _read_pattern,
    "layer_types": _read_words,
    "attn_layer_indices": _read_attention_indices,
    "attn_layer_period": _read_period,
    "full_attention_interval": _read_interval,
}


def read_layout(config: Config) -> str:
    """One letter a layer, from whichever dialect the config speaks; raises MinitronError where it speaks none."""
    for key, reader in READERS.items():
        if config.get(key) is not None:
            letters = reader(config, key)
            if not letters:
                raise MinitronError(f"config.json: {key} is empty; a model needs at least one layer.")
            return letters
    raise MinitronError(f"config.json names no layer layout; it needs one of {', '.join(READERS)}.")


def keep_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Leave only the layers `kept` in every layout key that `config` has, each in its own dialect.

    A period or an interval describes the whole stack by one number and most selections break it: such a config gets
    an explicit `layers_block_type` beside it, which readers prefer."""
    periodic = config.get("attn_layer_period") or config.get("full_attention_interval")
    if periodic and kept != tuple(range(int(config["num_hidden_layers"]))):
        letters = read_layout(config)
        words = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
        config["layers_block_type"] = [words[letters[layer]] for layer in kept]
    elif isinstance(config.get("layers_block_type"), list):
        config["layers_block_type"] = [config["layers_block_type"][layer] for layer in kept]
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][layer] for layer in kept]
    if isinstance(config.get("hybrid_override_pattern"), str):
        config["hybrid_override_pattern"] = "".join(config["hybrid_override_pattern"][layer] for layer in kept)
    if isinstance(config.get("attn_layer_indices"), list):
        attention = set(config["attn_layer_indices"])
        config["attn_layer_indices"] = [new for new, layer in enumerate(kept) if layer in attention]
    if "num_hidden_layers" in config:
        config["num_hidden_layers"] = len(kept)
