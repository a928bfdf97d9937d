"""GLM-4.5 to 4.7 and Solar Open: DeepSeek-V3's mixture of experts behind rotary attention, or behind attention over a
latent."""

from functools import partial
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import Config, rows
from minitron.model.families.decoders import (
    EXPERTS_IN_GROUPS,
    INSIDE,
    LAYERS_BEHIND,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.deepseek import (
    LATENT,
    LATENT_AXES,
    LATENT_HEADS,
    ROUTER_BIAS,
    dense_first,
    latent_attention,
    say_dense_first,
    shared_experts,
    shared_mlp,
)
from minitron.model.families.layer_lists import layer_count

_LAYERS = partial(dense_first, count=1)
_ATTENTION = attention(bias="attention_bias", head_norms=INSIDE, head_norms_when="use_qk_norm")
_MIXTURE = (*routed_experts(), ROUTER_BIAS, *shared_mlp())

GLM4_MOE = mixture_decoder(
    "glm4_moe",
    moe=pre_norm(_ATTENTION, _MIXTURE),
    dense=pre_norm(_ATTENTION, gated_mlp()),
    layout=_LAYERS,
    edit=partial(say_dense_first, _LAYERS),
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 8},
        expert=EXPERTS_IN_GROUPS | {"default": 128},
        shared_ffn=shared_experts("n_shared_experts"),
    ),
    defaults={"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1},
    extras=(LAYERS_BEHIND,),
    summary="attention, mixture of experts with shared ones (GLM-4.5, 4.5-Air, 4.6 and 4.7 in bf16)",
)

SOLAR_OPEN = mixture_decoder(
    "solar_open",
    moe=pre_norm(attention(bias="attention_bias"), _MIXTURE),
    axes=rows(
        *("hidden", "vocab", "query_head", "expert_ffn"),
        kv_head={"default": 8},
        head_dim={"default": 128},
        expert=EXPERTS_IN_GROUPS | {"default": 128},
        shared_ffn=shared_experts("n_shared_experts"),
    ),
    defaults={"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1},
    summary="attention, mixture of experts with shared ones (Solar Open)",
)


def sparse_words(config: Config, *, dense: int = 1) -> str:
    """What mlp_layer_types says of each layer; where it is absent, the first `dense` layers have no experts.

    Raises MinitronError for another word and for a list of another length."""
    given, count = config.get("mlp_layer_types"), layer_count(config)
    if given is None:
        return "-" * min(dense, count) + "E" * (count - dense)
    letters = {"dense": "-", "sparse": "E"}
    if not isinstance(given, list | tuple) or len(given) != count or any(word not in tuple(letters) for word in given):
        raise MinitronError(
            f"config.json: mlp_layer_types does not say dense or sparse for each of the {count} layers; correct it."
        )
    return "".join(letters[word] for word in given)


def say_sparse_words(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The words of all layers, which are then cut; engines that ask for the number of dense layers get it."""
    letters = sparse_words(config)
    config["mlp_layer_types"] = ["dense" if letter == "-" else "sparse" for letter in letters]
    if "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = sum(letters[layer] == "-" for layer in kept)


GLM4_MOE_LITE = mixture_decoder(
    "glm4_moe_lite",
    moe=pre_norm(latent_attention(), _MIXTURE),
    dense=pre_norm(latent_attention(), gated_mlp()),
    layout=sparse_words,
    edit=say_sparse_words,
    cache=LATENT,
    axes=rows(
        *("hidden", "vocab", "ffn", "expert_ffn"),
        query_head=LATENT_HEADS["query_head"],
        v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": 256},
        expert=EXPERTS_IN_GROUPS | {"default": 64},
        shared_ffn=shared_experts("n_shared_experts"),
        extra=LATENT_AXES,
    ),
    defaults={"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 768},
    extras=(LAYERS_BEHIND,),
    summary="latent attention, mixture of experts with shared ones (GLM-4.7-Flash)",
)
