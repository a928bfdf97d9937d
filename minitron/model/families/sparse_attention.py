"""DeepSeek-V3.2 and GLM-5: attention over a latent, of which each token sees the tokens that an indexer chooses, and
DeepSeek-V3's mixture of experts.

The indexer keeps a key of its own for every token (DeepSeek-AI 2025, DeepSeek-V3.2, arXiv 2512.02556, section 2.1)."""

from collections.abc import Sequence
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    EXPERTS_IN_GROUPS,
    LAYERS_BEHIND,
    gain,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.deepseek import (
    LATENT_AXES,
    LATENT_HEADS,
    ROUTER_BIAS,
    latent_attention,
    shared_experts,
    shared_mlp,
)
from minitron.model.families.family import Cache, Family, Norm, Rule
from minitron.model.families.glm_moe import sparse_words
from minitron.model.families.layer_lists import attention_types, layer_count

_INDEXER: Final = ATTENTION + "indexer."

_ATTENTION: Final = (
    *latent_attention(),
    Rule(_INDEXER + "wq_b.weight", "index_head*index_dim, q_rank", "attention"),
    Rule(_INDEXER + "wk.weight", "index_dim, hidden", "attention"),
    gain(_INDEXER + "k_norm", Norm("inside", kind="layer"), "index_dim", "attention"),
    Rule(_INDEXER + "k_norm.bias", "index_dim", "attention"),
    Rule(_INDEXER + "weights_proj.weight", "index_head, hidden", "attention"),
)

# Attention multiplies with index_topk tokens at most, so that this is more than it does in a long context.
_KEPT: Final = Cache(
    "kv_rank + rope_dim + index_dim",
    attends="query_head*(kv_rank + rope_dim) + query_head*kv_rank + index_head*index_dim",
    called="attention layers",
)

_CHOOSES: Final = "calibration does not see which tokens the indexer chooses"


def _mixtures(config: Config) -> str:
    attention_types(config, lambda layer: "indexed_attention", known=("indexed_attention",))
    if any(kind != "full" for kind in _indexers(config)):
        raise MinitronError(
            "config.json: indexer_types or index_topk_freq has layers that share the tokens an earlier layer chose, "
            "which Minitron does not support; use a model whose layers all choose their own."
        )
    return sparse_words(config, dense=number_of(config, "first_k_dense_replace", 3))


def _indexers(config: Config) -> Sequence[Any]:
    """`full` for every layer that chooses its own tokens, `shared` for those that take an earlier layer's."""
    given = config.get("indexer_types") or config.get("index_topk_pattern")
    if given is None:
        return ["full" if number_of(config, "index_topk_freq", 1) <= 1 else "shared"] * layer_count(config)
    if not isinstance(given, Sequence):
        raise MinitronError(f"config.json: indexer_types is {given!r:.40}; give one word for each layer.")
    return ["full" if kind == "F" else kind for kind in given]


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """What follows from a layer's number is said outright once the numbers change."""
    letters = _mixtures(config)
    if kept != tuple(range(layer_count(config))):
        config["mlp_layer_types"] = ["dense" if letter == "-" else "sparse" for letter in letters]
        config["first_k_dense_replace"] = sum(letters[layer] == "-" for layer in kept)


def _decoder(model_type: str, v_head_dim: int, index_heads: int, groups: tuple[int, int], **more: Any) -> Family:
    """A family whose class has these defaults; `groups` are n_group and topk_group."""
    defaults = {"num_experts_per_tok": 8, "n_group": groups[0], "topk_group": groups[1]}
    return mixture_decoder(
        model_type,
        moe=pre_norm(_ATTENTION, (*routed_experts(), ROUTER_BIAS, *shared_mlp())),
        dense=pre_norm(_ATTENTION, gated_mlp()),
        layout=_mixtures,
        edit=_edit,
        cache=_KEPT,
        axes=rows(
            *("hidden", "vocab", "ffn", "expert_ffn"),
            query_head=LATENT_HEADS["query_head"],
            v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": v_head_dim},
            # transformers reads num_experts where both are there.
            expert=EXPERTS_IN_GROUPS
            | {"keys": ("num_experts", "n_routed_experts", "num_local_experts"), "default": 256},
            shared_ffn=shared_experts("n_shared_experts", 1),
            extra=(
                *LATENT_AXES,
                Axis("index_head", "indexer heads", ("index_n_heads",), default=index_heads, fixed=_CHOOSES),
                Axis("index_dim", "indexer width", ("index_head_dim",), default=128, fixed=_CHOOSES),
            ),
        ),
        defaults=defaults | more.pop("defaults"),
        extras=(LAYERS_BEHIND,),
        **more,
    )


DEEPSEEK_V32 = _decoder(
    "deepseek_v32",
    v_head_dim=128,
    index_heads=64,
    groups=(8, 4),
    defaults={"q_lora_rank": 1536},
    summary="latent attention to tokens that an indexer chooses, mixture of experts with shared ones (DeepSeek-V3.2)",
)

GLM_DSA = _decoder(
    "glm_moe_dsa",
    v_head_dim=256,
    index_heads=32,
    groups=(1, 1),
    defaults={"q_lora_rank": 2048},
    # Each layer hands the chosen tokens on.
    beside_states=1,
    summary="latent attention to tokens that an indexer chooses, mixture of experts with shared ones (GLM-5)",
)
