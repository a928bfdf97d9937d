"""What llama.cpp's choice of types depends on, of a model as Minitron knows it."""

from __future__ import annotations

from minitron.memory.ggml import Facts
from minitron.model.axes import EXPERT
from minitron.model.spec import ModelSpec

QUERY, SHARED = "query_head", "kv_head"


def facts_of(spec: ModelSpec, *, tied: bool, calibrated: bool = False) -> Facts:
    """The facts of a model; `tied` where the file has no output matrix of its own."""
    attention = [kind for kind in spec.layers if (cache := spec.cache(kind)) is not None and cache.keys_values]
    first = spec.at(spec.layers[0], spec.sizes) if spec.layers[0] in attention else {}
    routed = [kind for kind in dict.fromkeys(spec.layers) if any(rule.per_expert for rule in spec.rules[kind])]
    return Facts(
        layers=len(spec.layers),
        experts=max((int(spec.at(kind, spec.sizes)[EXPERT]) for kind in routed), default=0),
        query_heads=int(first.get(QUERY, 0)),
        kv_heads=int(first.get(SHARED, 0)),
        attention=len(attention),
        tied=tied,
        calibrated=calibrated,
        llama=spec.family.name == "llama",
    )
