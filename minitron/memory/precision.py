"""The number formats of a model's weights: one format, or a mixture as in quantised checkpoints.

Quantised checkpoints keep some of their tensors wide.  A mixture is an ordered list of clauses; the first clause that
names a tensor gives its format, and what none names stays in the dtype that the model computes in.  Published mixtures
are reproduced to the byte (tests/memory/test_precision.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, STORED, Format, formats_for, stored_format
from minitron.memory.stored import beside_bytes, stored_formats, stored_origin, stored_source
from minitron.model.axes import EXPERT
from minitron.model.dims import numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp

PROJECTIONS: Final = "projections"
"""Stands for every linear inside a block, however a family calls its tensors."""


@dataclass(frozen=True)
class Clause:
    """Some tensors and the format in which they are kept."""

    tensors: str
    """A regular expression that is searched in `component:name`, or PROJECTIONS for every linear inside a block."""

    form: str
    """A name in minitron.memory.formats.FORMATS."""

    share: Fraction = Fraction(1)
    """Of the layers that have the tensor, the first so many."""

    feeds_attention: bool = False
    """Only in layers that stand directly in front of an attention layer."""

    def names(self, rule: Rule) -> bool:
        """Whether it speaks of a rule's tensors."""
        if self.tensors == PROJECTIONS:
            return rule.is_projection
        return re.search(self.tensors, f"{rule.component}:{rule.name}") is not None


@dataclass(frozen=True)
class Mixture:
    """How the tensors of a checkpoint are kept."""

    clauses: tuple[Clause, ...]
    origin: str
    """exact, published or estimated."""

    source: str
    """Where the mixture comes from, as a sentence."""

    attention_bytes: int = 0
    """Scales of keys and values, a layer of attention."""

    beside_bytes: int = 0
    """What is kept beside the tensors that the rules name, whatever is cut."""


_ROUTER: Final = (Clause(r"gate\.weight$", "fp32"), Clause(r"e_score_correction_bias$", "fp32"))
_NANO: Final = (*_ROUTER, Clause("^attention:", "bf16"), Clause(r"^ssm:.*_proj\.weight$", "bf16", feeds_attention=True))
_NANO_SOURCE: Final = (
    "the recipe of Nemotron-3-Nano-30B-A3B-{}: attention and the Mamba layer directly before each "
    "attention layer stay in bf16, the router in fp32"
)

# Super's formats were assigned layer by layer by a search of NVIDIA's (AutoQuantize).  Published are the 40,961
# matrices in NVFP4 (all routed experts and one shared expert's down_proj), the number of FP8 matrices (139) and the
# bytes; the shares of in_proj, out_proj, o_proj and fc1_latent_proj are one of several splits that give both.
_SUPER: Final = (
    Clause(r"e_score_correction_bias$", "fp32"),
    Clause("^moe_routed:", "nvfp4"),
    Clause(r"shared_experts\.down_proj", "nvfp4", Fraction(1, 40)),
    Clause("^moe_shared:", "fp8"),
    Clause(r"^ssm:.*\.in_proj\.weight$", "fp8", Fraction(30, 40)),
    Clause(r"^ssm:.*\.out_proj\.weight$", "fp8", Fraction(21, 40)),
    Clause(r"o_proj\.weight$", "fp8", Fraction(5, 8)),
    Clause("fc1_latent_proj", "fp8", Fraction(4, 40)),
)

PUBLISHED: Final[dict[tuple[str, str, str], Mixture]] = {
    ("nemotron_h", "dense", "fp8"): Mixture(
        (Clause("^attention:", "bf16"), Clause(PROJECTIONS, "fp8")),
        "published",
        "the recipe of Nemotron-Nano-9B-v2-FP8: Mamba and MLP projections in FP8, attention in bf16",
    ),
    ("nemotron_h", "moe", "nvfp4"): Mixture(
        (*_NANO, Clause(PROJECTIONS, "nvfp4")), "published", _NANO_SOURCE.format("NVFP4")
    ),
    ("nemotron_h", "moe", "fp8"): Mixture(
        (*_NANO, Clause(PROJECTIONS, "fp8")), "published", _NANO_SOURCE.format("FP8")
    ),
    ("nemotron_h", "latent", "nvfp4"): Mixture(
        _SUPER,
        "published",
        "the recipe of Nemotron-3-Super-120B-A12B-NVFP4: routed experts in NVFP4, 139 other matrices in FP8 (how those "
        "spread over Mamba, attention and latent projections is inferred from the bytes)",
        attention_bytes=8,
    ),
    ("nemotron_h", "latent", "fp8"): Mixture(
        (*_ROUTER, Clause("^attention:", "bf16"), Clause("^moe_latent_proj:", "bf16"), Clause(PROJECTIONS, "fp8")),
        "published",
        "the recipe of Nemotron-3-Super-120B-A12B-FP8: experts and Mamba projections in FP8, attention and latent "
        "projections in bf16, the router in fp32",
        attention_bytes=8,
    ),
}
"""(family, dense, moe or latent for experts in a latent space, format) -> the mixture published for such models."""


@dataclass(frozen=True)
class Precision:
    """The formats of one model's tensors."""

    weights: str
    """What was asked for: a name in minitron.memory.formats.FORMATS, or STORED."""

    computed: str
    """The format of what no clause names."""

    mixture: Mixture

    stored: bool = False
    """Whether the config of a quantised checkpoint gives the formats of what no clause names."""

    @property
    def uniform(self) -> Format | None:
        """The one format of all tensors, None where there are several."""
        several = self.mixture.clauses or self.mixture.attention_bytes or self.stored
        return None if several else FORMATS[self.computed]


@cache
def _precision(family: str, sort: str, components: frozenset[str], weights: str, keep: tuple[Any, ...]) -> Precision:
    if weights not in (known := formats_for("weights")):
        raise MinitronError(f"weights cannot be kept in {weights}; choose {', '.join(known)}.")
    kept = _kept(components, keep)
    if not FORMATS[weights].quantised:
        return Precision(weights, weights, Mixture(tuple(kept), "exact", f"every tensor in {weights}"))
    everything = Mixture(
        (Clause(PROJECTIONS, weights),),
        FORMATS[weights].origin,
        f"every projection in {weights} ({FORMATS[weights].note}), the rest in bf16",
    )
    mixture = PUBLISHED.get((family, sort, weights), everything)
    return Precision(
        weights,
        "bf16",
        Mixture((*kept, *mixture.clauses), mixture.origin, mixture.source, mixture.attention_bytes),
    )


def _kept(components: frozenset[str], keep: tuple[Any, ...]) -> list[Clause]:
    """The clauses of the components that are kept in a format of their own."""
    kept, known = [], formats_for("weights")
    for component, form in keep:
        if component not in components or form not in known:
            raise MinitronError(
                f"--keep {component}={form} is not a part of this model and a known format; the parts "
                f"are {', '.join(sorted(components))}, the formats {', '.join(known)}."
            )
        kept.append(Clause(f"^{component}:", form))
    return kept


def precision_of(spec: ModelSpec, weights: str, keep: Mapping[str, str] | None = None) -> Precision:
    """The formats of a model kept in `weights`, but for the components in `keep` (component -> format).

    fp8 and nvfp4 take the mixture that was published for such models where there is one, else every projection is
    quantised; STORED takes what the config says of a quantised checkpoint.  Raises MinitronError for a component that
    the model does not have and for unknown formats."""
    components = frozenset(rule.component for rules in spec.rules.values() for rule in rules)
    sort = "latent" if "moe_latent_proj" in components else "moe" if "moe_routed" in components else "dense"
    kept = tuple((keep or {}).items())
    found = spec.quantisation if weights == STORED else None
    if found is None:
        return _precision(spec.family.name, sort, components, weights, kept)
    if found.silent and (spec.family.name, sort, main := found.main.name if found.main else "nvfp4") in PUBLISHED:
        return _precision(spec.family.name, sort, components, main, kept)
    clauses = tuple(_kept(components, kept))
    scales = found.kv_bytes if spec.source.measured is None else 0
    origin, source = stored_origin(spec, found), stored_source(spec, found)
    mixture = Mixture(clauses, origin, source, attention_bytes=scales, beside_bytes=beside_bytes(spec))
    return Precision(STORED, stored_format(spec.config), mixture, stored=True)


@dataclass(frozen=True)
class Part:
    """The tensors of one rule that are kept in one format."""

    kind: str
    rule: Rule
    form: Format
    count: Any
    """Layers that have it so, or an array with one number a depth; experts are not counted."""


@dataclass(frozen=True)
class Tally:
    """How many layers there are of each kind, and how their tensors are kept.  Numbers, or arrays over depths."""

    kinds: Mapping[str, Any]
    parts: tuple[Part, ...]
    attention_bytes: int = 0
    beside_bytes: int = 0

    def at(self, depth: NDArray[np.int64]) -> Tally:
        """The tally of some depths out of all, in the shape of `depth`."""
        return Tally(
            {kind: count[depth] for kind, count in self.kinds.items()},
            tuple(Part(part.kind, part.rule, part.form, part.count[depth]) for part in self.parts),
            self.attention_bytes,
            self.beside_bytes,
        )

    @property
    def first(self) -> Tally:
        """The tally of the first depth, in plain numbers."""
        return Tally(
            {kind: int(count[0]) for kind, count in self.kinds.items()},
            tuple(Part(part.kind, part.rule, part.form, int(part.count[0])) for part in self.parts),
            self.attention_bytes,
            self.beside_bytes,
        )


def tally(spec: ModelSpec, precision: Precision, depths: Sequence[Sequence[int]]) -> Tally:
    """The tally of every depth, given as the layers of `spec` that stay: arrays of the shape [depths]."""
    one = [_tally_one(spec, precision, kept) for kept in depths]
    kinds = {kind: np.array([kinds[kind] for kinds, _ in one]) for kind in one[0][0]}
    keys = dict.fromkeys(key for _, parts in one for key in parts)
    parts = tuple(
        Part(
            kind,
            spec.rules[kind][place],
            form,
            np.array([parts.get((kind, place, form), 0) for _, parts in one]),
        )
        for kind, place, form in keys
    )
    return Tally(kinds, parts, precision.mixture.attention_bytes, precision.mixture.beside_bytes)


def tally_of(spec: ModelSpec, precision: Precision) -> Tally:
    """The tally of the whole model, in plain numbers."""
    if precision not in spec.tallies:
        spec.tallies[precision] = tally(spec, precision, [range(len(spec.layers))]).first
    found: Tally = spec.tallies[precision]
    return found


def _tally_one(
    spec: ModelSpec, precision: Precision, kept: Sequence[int]
) -> tuple[dict[str, int], dict[tuple[str, int, Format], int]]:
    layers = [spec.layers[layer] for layer in kept]
    kinds = {kind: layers.count(kind) for kind in dict.fromkeys(spec.layers)}
    kinds |= {kind: spec.mtp_layers.count(kind) for kind in spec.mtp_layers}
    attends = [_attends(spec, kind) for kind in layers]
    # The last layer has none behind it.
    feeds = {
        kind: sum(own == kind and after for own, after in zip(layers, attends[1:], strict=False)) for kind in kinds
    }
    parts: dict[tuple[str, int, Format], int] = {}
    for kind, rules in spec.rules.items():
        count = kinds.get(kind, 1)
        for place, rule in enumerate(rules):
            if precision.stored and not any(clause.names(rule) for clause in precision.mixture.clauses):
                found = stored_formats(spec, kind, rule, kept)
            else:
                found = _formats(precision, kind, rule, count, feeds.get(kind, 0))
            for form, number in found:
                key = (kind, place, form)
                parts[key] = parts.get(key, 0) + number
    return kinds, parts


def _attends(spec: ModelSpec, kind: str) -> bool:
    found = spec.cache(kind)
    return found is not None and bool(found.keys_values)


def _formats(precision: Precision, kind: str, rule: Rule, count: int, feeds: int) -> Iterator[tuple[Format, int]]:
    """The formats of a rule's tensor, and in how many of its `count` layers each; `feeds` feed attention."""
    left = count
    for clause in precision.mixture.clauses:
        if not clause.names(rule):
            continue
        form = FORMATS[clause.form]
        # The multi-token-prediction block stays as it is in every published checkpoint, its router's bias apart.
        if form.quantised and (is_mtp(kind) or len(rule.matrix) < 2):
            continue
        number = min(left, feeds if clause.feeds_attention else round(clause.share * count))
        if number:
            yield form, number
        left -= number
    if left:
        yield FORMATS[precision.computed], left


def weight_bytes(spec: ModelSpec, found: Tally, sizes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Bytes of the model and of its multi-token-prediction block; arrays where `found` and `sizes` hold arrays."""
    total: Any = 0
    mtp: Any = 0
    for kind, _, count in parts_bytes(spec, found, sizes):
        if is_mtp(kind):
            mtp = mtp + count
        else:
            total = total + count
    if found.attention_bytes:
        attention = sum(count for kind, count in found.kinds.items() if _attends(spec, kind))
        total = total + attention * found.attention_bytes
    return total + found.beside_bytes, mtp


def parts_bytes(spec: ModelSpec, found: Tally, sizes: Mapping[str, Any]) -> Iterator[tuple[str, Part, Any]]:
    """kind, part and the bytes of all its tensors, part by part."""
    for part in found.parts:
        matrix, own = part.rule.matrix, spec.at(part.kind, sizes)
        # A number has no dimensions: a row of one.
        *rows, columns = 1, *(numel(dim, own) for dim in (reversed(matrix) if part.rule.transposed else matrix))
        height: Any = 1
        for row in rows:
            height = height * row
        count = part.count * part.form.matrix(height, columns)
        if part.rule.per_expert:
            count = count * own[EXPERT]
        yield part.kind, part, count
