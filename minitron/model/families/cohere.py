"""Command R and R7B: attention and MLP read the stream side by side through one LayerNorm, and logits are multiplied
by a number of the config."""

from collections.abc import Callable
from typing import Any, Final

from minitron.model.axes import Config, number_of
from minitron.model.families.decoders import ATTENTION, LAYER, attention, gain, gated_mlp, outside, rotary_decoder
from minitron.model.families.family import Norm
from minitron.model.families.layer_lists import FULL, SLIDING
from minitron.model.families.logits import Logits

_INSIDE: Final = Norm("inside", kind="layer")
_BEFORE: Final = gain(LAYER + "input_layernorm", Norm("before", kind="layer"))
_ATTENTION: Final = attention(bias="attention_bias", output_bias="attention_bias")
_HEAD_NORMS: Final = (
    gain(ATTENTION + "q_norm", _INSIDE, "query_head, head_dim", "attention", when="use_qk_norm"),
    gain(ATTENTION + "k_norm", _INSIDE, "kv_head, head_dim", "attention", when="use_qk_norm"),
)
_COMMON: Final[dict[str, Any]] = {
    "model": outside(Norm("final", kind="layer")),
    "logits": Logits(factor="logit_scale"),
}
_DEFAULTS: Final[dict[str, Any]] = {"tie_word_embeddings": True, "logit_scale": 0.0625}


def _every_fourth(config: Config) -> Callable[[int], str]:
    period = number_of(config, "sliding_window_pattern", 4, least=1)
    return lambda layer: SLIDING if (layer + 1) % period else FULL


COHERE = rotary_decoder(
    "cohere",
    layer=(_BEFORE, *_ATTENTION, *_HEAD_NORMS, *gated_mlp()),
    defaults=_DEFAULTS,
    summary="attention, with normalised heads in the larger model, beside gated MLP, LayerNorm (Command R, R+, Aya 23)",
    **_COMMON,
)

COHERE2 = rotary_decoder(
    "cohere2",
    layer=(_BEFORE, *_ATTENTION, *gated_mlp()),
    window="sliding_window",
    slides=_every_fourth,
    defaults=_DEFAULTS | {"sliding_window": 4096},
    summary="attention, three of four layers in a sliding window, beside gated MLP, LayerNorm (Command R7B, Command A)",
    **_COMMON,
)
