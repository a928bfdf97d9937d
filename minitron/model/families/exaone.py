"""EXAONE 4: rotary attention with normalised heads and a gated MLP that read the stream as it is and write to it
through a norm; where three of four layers slide, the others have no rotary embeddings."""

from collections.abc import Callable

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import INSIDE, attention, gated_mlp, post_norm, rotary_decoder
from minitron.model.families.layer_lists import FULL, SLIDING


def _slides(config: Config) -> Callable[[int], str]:
    """Where layer_types says nothing all but every sliding_window_pattern-th layer slide."""
    if config.get("layer_types") is not None:
        return lambda layer: FULL
    if config.get("sliding_window", 4096) is None:
        raise MinitronError(
            "config.json: sliding_window is null and there is no layer_types, so that transformers refuses the "
            'config; add layer_types with "full_attention" for each layer.'
        )
    period = number_of(config, "sliding_window_pattern", 4, least=1)
    return lambda layer: SLIDING if (layer + 1) % period else FULL


EXAONE4 = rotary_decoder(
    "exaone4",
    layer=post_norm(attention(head_norms=INSIDE), gated_mlp()),
    window="sliding_window",
    slides=_slides,
    axes=rows("hidden", "vocab", "ffn", "query_head", "head_dim", kv_head={"default": 32}),
    defaults={"sliding_window": 4096},
    summary="attention with normalised heads and gated MLP, norms behind them, three of four layers in a sliding "
    "window where the config sets one (EXAONE 4)",
)
