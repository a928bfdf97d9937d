"""MiniMax-Text-01: lightning attention (Qin et al. 2024, arXiv 2405.17381), whose heads keep a matrix each, or softmax
attention (MiniMax 2025, arXiv 2501.08313), and in every layer a mixture of experts."""

from __future__ import annotations

from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, Config, rows
from minitron.model.families.decoders import (
    ATTENTION,
    INSIDE,
    KEYS_AND_VALUES,
    QUERIES,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gain,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Cache, Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types
from minitron.model.families.mixtral import NAMES, ON_DISK

_DECAYS: Final = "the decays of lightning attention follow from the number of heads and of the layer among all"

_BEFORE: Final = Norm("before", in_stream=True)

_LIGHTNING: Final = (
    Rule(ATTENTION + "qkv_proj.weight", "query_head*(head_dim + head_dim + head_dim), hidden", "ssm"),
    Rule(ATTENTION + "output_gate.weight", f"{QUERIES}, hidden", "ssm"),
    Rule(ATTENTION + "slope_rate", "query_head, 1, 1", "ssm"),
    Rule(ATTENTION + "query_decay", "query_head, decay_block, 1", "ssm"),
    Rule(ATTENTION + "key_decay", "query_head, decay_block, 1", "ssm"),
    Rule(ATTENTION + "diagonal_decay", "1, query_head, decay_block, decay_block", "ssm"),
    gain(ATTENTION + "norm", INSIDE, QUERIES, "ssm"),
    Rule(ATTENTION + "out_proj.weight", f"hidden, {QUERIES}", "ssm"),
)
"""A head's query, key and value stand together.  Decays within a block of tokens are stored, one table a layer."""

_STATES: Final = Cache(
    state="query_head*head_dim*head_dim", scans=f"2*({QUERIES})", called="lightning attention layers"
)

_MIXTURE: Final = routed_experts(ON_DISK, names=NAMES)


def _layout(config: Config) -> str:
    """L for lightning attention, * for softmax attention: by turns, * first, where layer_types does not say."""
    words = attention_types(config, lambda layer: LINEAR if layer % 2 else FULL, known=(FULL, LINEAR))
    return "".join("*" if word == FULL else "L" for word in words)


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    raise MinitronError(f"no layer of a minimax model can be left out, as {_DECAYS}; keep all of them.")


MINIMAX: Final = Family(
    name="minimax",
    model_types=("minimax",),
    letters={"L": "linear", "*": "attention"},
    kind_labels={
        "linear": "lightning attention + mixture of experts",
        "attention": "attention + mixture of experts",
    },
    rules={
        "model": outside(),
        "linear": pre_norm(_LIGHTNING, _MIXTURE, _BEFORE),
        "attention": pre_norm(attention(), _MIXTURE, _BEFORE),
    },
    axes=rows(
        *("hidden", "vocab", "head_dim"),
        query_head={"fixed": _DECAYS},
        kv_head={"default": 8, "fixed": "each holds as many query heads, of which none can go"},
        expert={"keys": ("num_local_experts", "num_experts"), "default": 8},
        expert_ffn={"keys": ("intermediate_size",)},
        extra=(Axis("decay_block", "block of decays", ("block_size",), default=256, fixed="its decays are stored"),),
    ),
    # Softmax attention keeps all tokens, whatever sliding_window says: transformers' cache of these models does too.
    cache={"linear": _STATES, "attention": KEYS_AND_VALUES},
    layout=_layout,
    edit_layout=_edit,
    together=lambda config: len(_layout(config)),
    defaults={"num_experts_per_tok": 2},
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="lightning attention or attention, mixture of experts (MiniMax-Text-01)",
)
