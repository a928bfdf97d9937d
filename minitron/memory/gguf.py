"""How llama.cpp's types fall on the tensors of a model: the bytes of a GGUF file from config.json alone.

What a matrix is kept in depends on its role and on how many of that role stand before it, so on the layers that stay;
and on a few facts of the model as a whole, so on sizes that a search varies: those are told as a Circumstance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, Format, ggml_format, ggml_name
from minitron.memory.ggml import TYPES, Facts, Mixture, Place, mixture_of
from minitron.memory.gguf_families import require_exportable
from minitron.model.axes import EXPERT
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp

QUERY, SHARED = "query_head", "kv_head"

COUNTED: Final = ("llama", "nemotron_h")
"""Families whose files were measured against the count (tests/gguf)."""

_WHOLE: Final = 256
"""Columns that are whole blocks of every type."""

_ROLES: Final = {
    r"^lm_head\.weight$": "output",
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


def require_counted(spec: ModelSpec) -> None:
    """Raise MinitronError where llama.cpp cannot load such a model, or its files were not measured."""
    if spec.family.name not in COUNTED or spec.text.get("rope_scaling"):
        raise MinitronError(
            f"the bytes of a GGUF file of this {spec.family.name} model are not known before it is written; `minitron "
            "export` tells them."
        )
    require_exportable(spec)


@dataclass(frozen=True)
class Circumstance:
    """What of a model's sizes llama.cpp's choice of types depends on."""

    experts: tuple[int, int]
    """The least and the most routed experts of a layer."""

    first: str = ""
    """The kind of the first layer where that is attention; else empty, and `heads` is always so."""

    heads: str = "equal"
    """A name in _HEADS."""

    def holds(self, spec: ModelSpec, sizes: Mapping[str, Any]) -> Any:
        """Whether it is so with these sizes; an array where they hold arrays."""
        experts = experts_of(spec, sizes)
        found = (self.experts[0] <= experts) & (experts <= self.experts[1])
        if self.first:
            own = spec.at(self.first, sizes)
            query, shared = own[QUERY], own[SHARED]
            many = query // np.maximum(shared, 1) >= _MANY
            is_so = {"many": many, "some": (query != shared) & ~many, "equal": query == shared}
            found = found & is_so[self.heads]
        return found if np.ndim(found) else bool(found)

    def facts(self, spec: ModelSpec, layers: Sequence[str], *, calibrated: bool) -> Facts:
        """The facts of a model of which these layers stay."""
        return Facts(
            layers=len(layers),
            experts=self.experts[0],
            query_heads=_HEADS[self.heads] if self.first else 0,
            kv_heads=1 if self.first else 0,
            attention=sum(_attends(spec, kind) for kind in layers),
            tied=not any(rule.name == "lm_head.weight" for rule in spec.rules["model"]),
            calibrated=calibrated,
            llama=spec.family.name == "llama",
        )


_MANY: Final = 4
_HEADS: Final = {"equal": 1, "some": 2, "many": _MANY}
"""Query heads for each key and value head: as many, more, so many more that llama.cpp keeps values in more bits -> how
many stand for them."""

_MOST: Final = 2**40
_EXPERTS: Final = ((0, 1), (2, 3), (4, 7), (8, 8), (9, _MOST))
"""Numbers of experts among which llama.cpp makes no difference."""


def experts_of(spec: ModelSpec, sizes: Mapping[str, Any]) -> Any:
    """The most routed experts of any layer; 0 where there are none."""
    found: Any = 0
    for kind in dict.fromkeys(spec.layers):
        if any(rule.per_expert for rule in spec.rules[kind]):
            found = np.maximum(found, spec.at(kind, sizes)[EXPERT])
    return found


def _attends(spec: ModelSpec, kind: str) -> bool:
    found = spec.cache(kind)
    return found is not None and bool(found.keys_values)


def circumstances(spec: ModelSpec, layers: Sequence[str]) -> Iterator[Circumstance]:
    """All in which what is left of a model with these layers, of its sizes or smaller, may be; one excludes another."""
    most = int(experts_of(spec, spec.sizes))
    first = layers[0] if _attends(spec, layers[0]) else ""
    for experts in _EXPERTS:
        if experts[0] <= most:
            for heads in _HEADS if first else ("equal",):
                yield Circumstance(experts, first, heads)


def facts_of(spec: ModelSpec, *, calibrated: bool = False) -> Facts:
    """The facts of the model as it is."""
    found = next(one for one in circumstances(spec, spec.layers) if one.holds(spec, spec.sizes))
    return found.facts(spec, spec.layers, calibrated=calibrated)


def gguf_formats(
    spec: ModelSpec,
    kind: str,
    kept: Sequence[int],
    circumstance: Circumstance,
) -> Iterator[tuple[str, int, Format, int]]:
    """(kind of layer, place of the rule in it, format, in how many of its layers) of every tensor in the GGUF file of a
    model of which the layers `kept` stay; `kind` is the type of the file."""
    mixture = mixture_of(kind)
    layers = [spec.layers[layer] for layer in kept]
    facts = circumstance.facts(spec, layers, calibrated=mixture.calibrated)
    counts, seen = Counter[tuple[str, int, Format]](), Counter[str]()
    others = [kind for kind in spec.rules if kind not in spec.layers and not is_mtp(kind)]
    for layer, own in enumerate([*others, *layers], start=-len(others)):
        rules = spec.rules[own]
        # Routed experts before the shared one, as their names in the file are sorted.
        for place in sorted(range(len(rules)), key=lambda place: not rules[place].per_expert):
            form = _format(rules[place], mixture, facts, max(layer, 0), seen)
            counts[own, place, form] += 1
    for (own, place, form), count in counts.items():
        yield own, place, form, count


def is_matrix(rule: Rule) -> bool:
    """Whether a rule's tensors are quantised in a GGUF file."""
    return _role_of(rule.name) is not None


def types_of(spec: ModelSpec, kind: str, own_types: Mapping[str, str]) -> Callable[[Rule, tuple[int, ...]], str | None]:
    """What tells the type of a rule's tensors of a shape in the GGUF file of a model, None for those that stay in fp32:
    `own_types` is component -> type of all that is in layers, `kind` the type of the file, which the embedding and the
    output layer go by."""
    mixture = mixture_of(kind)
    facts = facts_of(spec, calibrated=True)

    def found(rule: Rule, shape: tuple[int, ...]) -> str | None:
        role = _role_of(rule.name)
        if role is None:
            return None
        if rule.component in own_types:
            form = ggml_format(own_types[rule.component])
        else:
            is_output = role == "output" or (facts.tied and role == "embedding")
            form = ggml_format(mixture.type_of(Place(role), facts, _WHOLE), output=is_output)
        return ggml_name(form.fitting(shape[-1]))

    return found


@cache
def _role_of(name: str) -> str | None:
    """The role of a rule's tensors; None for those that stay in fp32."""
    return next((role for part, role in _ROLES.items() if re.search(part, name)), None)


def _format(rule: Rule, mixture: Mixture, facts: Facts, layer: int, seen: Counter[str]) -> Format:
    role = _role_of(rule.name)
    if role is None:
        return FORMATS["fp32"]
    place = Place(role, layer, seen[role])
    seen[role] += 1
    is_output = role == "output" or (facts.tied and role == "embedding")
    return ggml_format(mixture.type_of(place, facts, _WHOLE), output=is_output)


PARTS: Final = {
    r"^output\.weight$": "lm_head",
    r"^token_embd\.weight$": "embedding",
    r"\.attn_(q|k|v|output)\.weight$": "attention",
    r"\.ssm_(in|out)\.weight$": "ssm",
    r"\.ffn_(up|gate|down)_exps\.weight$": "moe_routed",
    r"\.ffn_(up|gate|down)_shexp\.weight$": "moe_shared",
    r"\.ffn_(up|gate|down)\.weight$": "mlp",
    r"\.ffn_latent_(up|down)\.weight$": "moe_latent_proj",
}
"""A regular expression of a tensor's name in a GGUF file of a family that is COUNTED -> the component it is of."""


def part_of(name: str) -> str:
    """The component that a matrix of a GGUF file is of; empty where none is known."""
    return next((part for pattern, part in PARTS.items() if re.search(pattern, name)), "")


def require_types(components: Collection[str], own_types: Mapping[str, str]) -> None:
    """Raise MinitronError for a component that has no matrices in a GGUF file, or a type that ggml does not have."""
    for component, kind in own_types.items():
        if component not in components or component not in PARTS.values() or kind not in TYPES:
            known = sorted(set(PARTS.values()) & set(components))
            raise MinitronError(
                f"--keep {component}={kind} is not a part of this model that a GGUF file keeps in a type of its own, "
                f"and a type; the parts are {', '.join(known)}, the types {', '.join(TYPES)}."
            )
