"""The dialects in which configs say which kind of layer stands where.

Every reader gives one letter a layer: M Mamba, * attention, - MLP, E mixture of experts.  A writer rewrites the
config in its own dialect when only some layers stay."""

from collections.abc import Callable
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of
from minitron.model.families.layer_lists import keep_listed, layer_count, layer_indices

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


def read_pattern(config: Config, key: str) -> str:
    """A string of letters as it is; raises MinitronError for a letter that names no kind."""
    pattern = str(config[key])
    if unknown := set(pattern) - set(LETTERS):
        raise MinitronError(
            f"config.json: {key} has the letter {min(unknown)!r}; known are M Mamba, * attention, - MLP, E experts."
        )
    return pattern


def read_words(config: Config, key: str) -> str:
    """A list of words as letters; raises MinitronError for a word that names no kind."""
    words = config[key]
    if not isinstance(words, list | tuple):
        raise MinitronError(f"config.json: {key} is not a list of layer kinds; correct it.")
    # Compared one by one: a word may be anything, also what no table can be asked for.
    if unknown := [word for word in words if word not in tuple(WORDS)]:
        raise MinitronError(f"config.json: {key} has the layer kind {unknown[0]!r:.40}; known are {', '.join(WORDS)}.")
    return "".join(WORDS[word] for word in words)


def _read_attention_indices(config: Config, key: str) -> str:
    attention = layer_indices(config, key)
    return "".join("*" if layer in attention else "M" for layer in range(layer_count(config)))


def _read_period(config: Config, key: str) -> str:
    period, offset = number_of(config, key, least=1), number_of(config, "attn_layer_offset", 0)
    return "".join("*" if layer % period == offset else "M" for layer in range(layer_count(config)))


def _read_interval(config: Config, key: str) -> str:
    interval = number_of(config, key, least=1)
    return "".join("*" if (layer + 1) % interval == 0 else "M" for layer in range(layer_count(config)))


# A config may carry several of these keys; the first that is present and set wins, as in transformers, where an
# explicit list beats a pattern.
READERS: Final[dict[str, Callable[[Config, str], str]]] = {
    "layers_block_type": read_words,
    "hybrid_override_pattern": read_pattern,
    "layer_types": read_words,
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
            if config.get("num_hidden_layers") is not None and layer_count(config) != len(letters):
                raise MinitronError(
                    f"config.json: {key} describes {len(letters)} layers and num_hidden_layers is "
                    f"{layer_count(config)}; correct one of the two."
                )
            return letters
    raise MinitronError(f"config.json names no layer layout; it needs one of {', '.join(READERS)}.")


def keep_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Leave only the layers `kept` in every layout key that `config` has, each in its own dialect.

    A period or an interval describes the whole stack by one number and most selections break it: such a config gets
    an explicit `layers_block_type` beside it, which readers prefer."""
    periodic = config.get("attn_layer_period") or config.get("full_attention_interval")
    if periodic and kept != tuple(range(layer_count(config))):
        config["layers_block_type"] = [LETTERS[letter] for letter in read_layout(config)]
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        if len(pattern) <= kept[-1]:
            raise MinitronError("config.json: hybrid_override_pattern has no letter for some layers; correct it.")
        config["hybrid_override_pattern"] = "".join(pattern[layer] for layer in kept)
    keep_listed(config, kept)
