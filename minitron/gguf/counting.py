"""The bytes of the tensors of a GGUF file, from config.json alone: what `minitron export` would write."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Final

from minitron.errors import MinitronError
from minitron.gguf.facts import facts_of
from minitron.gguf.staging import require_exportable
from minitron.memory.ggml import TYPES, Place, fitted, mixture_of
from minitron.model.axes import EXPERT
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp

COUNTED: Final = ("llama", "nemotron_h")
"""Families whose files were measured against the count (tests/gguf)."""

_ROLES: Final = {
    r"lm_head\.weight$": "output",
    r"(embeddings|embed_tokens)\.weight$": "embedding",
    r"\.q_proj\.weight$": "attn_q",
    r"\.k_proj\.weight$": "attn_k",
    r"\.v_proj\.weight$": "attn_v",
    r"\.o_proj\.weight$": "attn_output",
    r"\.up_proj\.weight$": "ffn_up",
    r"\.gate_proj\.weight$": "ffn_gate",
    r"\.down_proj\.weight$": "ffn_down",
    r"\.(in_proj|out_proj|fc[12]_latent_proj)\.weight$": "other",
}
"""A regular expression of a tensor's name -> its role; all other tensors stay in fp32."""


def counted(spec: ModelSpec, mixture: str) -> int:
    """The bytes of all tensors that a GGUF file of the model holds, without padding.

    Raises MinitronError for a family whose files were not measured."""
    if spec.family.name not in COUNTED or spec.text.get("rope_scaling"):
        raise MinitronError(
            f"the bytes of a GGUF file of this {spec.family.name} model are not known before it is written; export it, "
            "which tells them."
        )
    require_exportable(spec)
    chosen, total = mixture_of(mixture), 0
    tensors = [one for one in spec.expected() if not is_mtp(one.kind) and one.index.get(EXPERT, 0) == 0]
    tied = not any(one.name == "lm_head.weight" for one in tensors)
    facts, seen = facts_of(spec, tied=tied), Counter[str]()
    # Routed experts before the shared one, as their names in the file are sorted.
    for one in sorted(tensors, key=lambda one: (one.index.get("layer", -1), not one.rule.per_expert)):
        role = next((role for part, role in _ROLES.items() if re.search(part, one.name)), None)
        *rows, columns = one.shape
        experts = int(spec.at(one.kind, spec.sizes)[EXPERT]) if one.rule.per_expert else 1
        if role is None:
            total += 4 * prod(one.shape)
            continue
        name = chosen.type_of(Place(role, one.index.get("layer", 0), seen[role]), facts, columns)
        seen[role] += 1
        total += experts * int(TYPES[fitted(name, columns)].layout.matrix(prod(rows), columns))
    return total
