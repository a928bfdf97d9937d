"""Gemma 2 and 3: four norms a layer whose tensors hold the gain less one, sliding windows in half or most of the
layers, an embedding that enters the stream times sqrt(hidden), and logits that may be capped."""

from collections.abc import Callable
from typing import Any

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import attention, gated_mlp, outside, rotary_decoder, sandwich
from minitron.model.families.family import Norm
from minitron.model.families.layer_lists import FULL, SLIDING
from minitron.model.families.logits import Logits

_NORM = Norm("before", plus_one=True)

_COMMON: dict[str, Any] = {
    "model": outside(Norm("final", plus_one=True)),
    "window": "sliding_window",
    "axes": rows(
        *("vocab", "ffn", "query_head"),
        hidden={"multiple_of": "query_head"},
        kv_head={"default": 4},
        head_dim={"default": 256},
    ),
    "defaults": {"sliding_window": 4096, "tie_word_embeddings": True},
    "scaled_stream": True,
    "logits": Logits(cap="final_logit_softcapping"),
    "refused": {"use_bidirectional_attention": "its attention is bidirectional"},
}


def _every(config: Config, period: int) -> Callable[[int], str]:
    return lambda layer: SLIDING if (layer + 1) % period else FULL


GEMMA2 = rotary_decoder(
    "gemma2",
    layer=sandwich(attention(bias="attention_bias", output_bias="attention_bias"), gated_mlp(), _NORM),
    slides=lambda config: _every(config, 2),
    summary="attention, every other layer in a sliding window, and gated MLP, norms on both sides of each, capped "
    "logits (Gemma 2)",
    **_COMMON | {"defaults": _COMMON["defaults"] | {"final_logit_softcapping": 30.0}},
)

GEMMA3 = rotary_decoder(
    "gemma3_text",
    layer=sandwich(
        attention(bias="attention_bias", output_bias="attention_bias", head_norms=Norm("inside", plus_one=True)),
        gated_mlp(),
        _NORM,
    ),
    slides=lambda config: _every(config, number_of(config, "sliding_window_pattern", 6, least=1)),
    summary="attention with normalised heads, five of six layers in a sliding window, gated MLP, norms on both sides "
    "of each (Gemma 3 without vision)",
    **_COMMON,
)
