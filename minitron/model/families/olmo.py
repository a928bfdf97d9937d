"""OLMo 2 and 3: rotary attention and a gated MLP that read the stream as it is and write to it through a norm."""

from collections.abc import Callable

from minitron.model.axes import Config
from minitron.model.families.decoders import INSIDE, attention, gated_mlp, post_norm, rotary_decoder
from minitron.model.families.layer_lists import FULL, SLIDING

_LAYER = post_norm(
    attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE, norms_over_heads=True),
    gated_mlp(),
)


def _three_of_four(config: Config) -> Callable[[int], str]:
    return lambda layer: SLIDING if (layer + 1) % 4 else FULL


OLMO2 = rotary_decoder(
    "olmo2",
    layer=_LAYER,
    summary="attention with queries and keys normalised over all heads and gated MLP, norms behind them (OLMo 2)",
)

OLMO3 = rotary_decoder(
    "olmo3",
    layer=_LAYER,
    window="sliding_window",
    slides=_three_of_four,
    always_windowed=True,
    defaults={"sliding_window": 4096},
    summary="as OLMo 2, three of four layers in a sliding window (OLMo 3)",
)
