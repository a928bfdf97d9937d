"""gpt-oss: attention with sinks, every other layer in a sliding window, and a mixture of experts in every layer whose
tensors hold all experts, inputs before outputs, gate and up interleaved.

Released in MXFP4, which is to be turned into bf16 before it is cut."""

from collections.abc import Callable

from minitron.model.axes import Config, rows
from minitron.model.families.decoders import ATTENTION, MLP, attention, pre_norm, rotary_decoder
from minitron.model.families.family import Rule
from minitron.model.families.layer_lists import FULL, SLIDING


def _alternating(config: Config) -> Callable[[int], str]:
    return lambda layer: SLIDING if (layer + 1) % 2 else FULL


_EXPERTS = (
    Rule(MLP + "router.weight", "expert, hidden", "moe_router", router=True),
    Rule(MLP + "router.bias", "expert", "moe_router", router=True),
    Rule(MLP + "experts.gate_up_proj", "expert, hidden, expert_ffn*2", "moe_routed", transposed=True),
    Rule(MLP + "experts.gate_up_proj_bias", "expert, expert_ffn*2", "moe_routed"),
    Rule(MLP + "experts.down_proj", "expert, expert_ffn, hidden", "moe_routed", transposed=True),
    Rule(MLP + "experts.down_proj_bias", "expert, hidden", "moe_routed"),
)

GPT_OSS = rotary_decoder(
    "gpt_oss",
    layer=pre_norm(
        (
            *attention(bias="attention_bias", output_bias="attention_bias"),
            Rule(ATTENTION + "sinks", "query_head", "attention"),
        ),
        _EXPERTS,
    ),
    window="sliding_window",
    slides=_alternating,
    labels={
        "decoder": "attention + mixture of experts",
        "sliding": "attention in a sliding window + mixture of experts",
    },
    axes=rows(
        *("hidden", "vocab", "query_head"),
        kv_head={"default": 8},
        head_dim={"default": 64},
        expert={"keys": ("num_local_experts", "num_experts"), "default": 128},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    defaults={"sliding_window": 128, "attention_bias": True, "num_experts_per_tok": 4},
    plain_head=True,
    summary="attention with sinks, every other layer in a sliding window, and mixture of experts (gpt-oss in bf16)",
)
