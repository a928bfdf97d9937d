"""Ministral and Ministral 3: Mistral's layers, of which some slide or whose queries grow with their position."""

from minitron.model.axes import rows
from minitron.model.families.decoders import attention, gated_mlp, pre_norm, rotary_decoder
from minitron.model.families.layer_lists import SLIDING

MINISTRAL = rotary_decoder(
    "ministral",
    layer=pre_norm(attention(), gated_mlp()),
    window="sliding_window",
    slides=lambda config: lambda layer: SLIDING,
    always_windowed=True,
    # MinistralConfig leaves an absent head_dim at null, and the model then cannot be built.
    axes=rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 8}, head_dim={"default": None, "null": None}),
    defaults={"sliding_window": 4096},
    summary="attention, in a sliding window in the layers that the config names, and gated MLP (Ministral 8B)",
)

MINISTRAL3 = rotary_decoder(
    "ministral3",
    layer=pre_norm(attention(), gated_mlp()),
    window="sliding_window",
    axes=rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 8}, head_dim={"default": 128}),
    summary="attention whose queries grow with their position and gated MLP (Ministral 3 without vision)",
)
