"""The number formats of a model's weights: one format, or a mixture as in quantised checkpoints.

Quantised checkpoints keep some of their tensors wide.  A mixture is an ordered list of clauses; the first clause that
names a tensor gives its format, and what none names stays in the dtype that the model computes in.  Published mixtures
are reproduced to the byte (tests/memory/test_precision.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, STORED, Format, formats_for, ggml_format, stored_format
from minitron.memory.ggml import mixture_of
from minitron.memory.gguf import Circumstance, circumstances, gguf_formats, is_matrix, require_counted, require_types
from minitron.memory.mixtures import PROJECTIONS, PUBLISHED, Clause, Mixture, published_for
from minitron.memory.stored import beside_bytes, stored_formats, stored_origin, stored_source
from minitron.model.axes import EXPERT
from minitron.model.dims import numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp


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

    gguf: str = ""
    """The type of a GGUF file, whose tensors llama.cpp gives their types; empty for safetensors."""

    own_types: tuple[tuple[str, str], ...] = ()
    """(component, type of ggml) of what a GGUF file keeps in a type of its own."""

    @property
    def uniform(self) -> Format | None:
        """The one format of all tensors, None where there are several."""
        several = self.mixture.clauses or self.mixture.attention_bytes or self.stored or self.gguf
        return None if several else FORMATS[self.computed]


@cache
def _precision(family: str, sort: str, components: frozenset[str], weights: str, keep: tuple[Any, ...]) -> Precision:
    if weights not in (known := formats_for("weights")):
        raise MinitronError(f"weights cannot be kept in {weights}; choose {', '.join(known)}.")
    if kind := FORMATS[weights].gguf:
        require_types(components, dict(keep))
        return Precision(weights, "bf16", _in_gguf(kind, keep), gguf=kind, own_types=keep)
    kept = _kept(components, keep)
    if not FORMATS[weights].quantised:
        return Precision(weights, weights, Mixture(tuple(kept), "exact", f"every tensor in {weights}"))
    everything = Mixture(
        (Clause(PROJECTIONS, weights),),
        FORMATS[weights].origin,
        f"every projection in {weights} ({FORMATS[weights].note}), the rest in bf16",
    )
    mixture = published_for(family, sort, weights) or everything
    return Precision(
        weights,
        "bf16",
        Mixture((*kept, *mixture.clauses), mixture.origin, mixture.source, mixture.attention_bytes),
    )


def _in_gguf(kind: str, keep: tuple[Any, ...]) -> Mixture:
    calibrated = ", with an importance matrix" if mixture_of(kind).calibrated else ""
    source = f"a GGUF file in {kind}{calibrated}, each tensor in the type that llama.cpp gives it"
    source += "".join(f", but {part} in {own}" for part, own in keep)
    return Mixture((), "exact", f"{source}; the file's header, with the vocabulary, and its padding are beside")


def _kept(components: frozenset[str], keep: tuple[Any, ...]) -> list[Clause]:
    """The clauses of the components that are kept in a format of their own."""
    kept, known = [], formats_for("weights")
    for component, form in keep:
        if component not in components or form not in known:
            raise MinitronError(
                f"--keep {component}={form} is not a part of this model and a known format; the parts "
                f"are {', '.join(sorted(components))}, the formats {', '.join(known)}."
            )
        linears = FORMATS[form].quantised and component != "embedding"
        kept.append(Clause(f"^{component}:", form, linears=linears))
    return kept


def precision_of(spec: ModelSpec, weights: str, keep: Mapping[str, str] | None = None) -> Precision:
    """The formats of a model kept in `weights`, but for the components in `keep` (component -> format).

    fp8 and nvfp4 take the mixture that was published for such models where there is one, else every projection is
    quantised; STORED takes what the config says of a quantised checkpoint.  Raises MinitronError for a component that
    the model does not have, for unknown formats, and for GGUF files of models whose files are not known."""
    components = frozenset(rule.component for rules in spec.rules.values() for rule in rules)
    if weights in FORMATS and FORMATS[weights].gguf:
        require_counted(spec)
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

    when: Circumstance | None = None
    """With which sizes they have; None for all."""


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
            tuple(replace(part, count=part.count[depth]) for part in self.parts),
            self.attention_bytes,
            self.beside_bytes,
        )

    @property
    def first(self) -> Tally:
        """The tally of the first depth, in plain numbers."""
        return Tally(
            {kind: int(count[0]) for kind, count in self.kinds.items()},
            tuple(replace(part, count=int(part.count[0])) for part in self.parts),
            self.attention_bytes,
            self.beside_bytes,
        )


def tally(spec: ModelSpec, precision: Precision, depths: Sequence[Sequence[int]]) -> Tally:
    """The tally of every depth, given as the layers of `spec` that stay: arrays of the shape [depths]."""
    if precision.own_types:
        key = (precision.gguf, tuple(map(tuple, depths)))
        if key not in spec.tallies:
            spec.tallies[key] = tally(spec, replace(precision, own_types=()), depths)
        return _in_own_types(spec.tallies[key], dict(precision.own_types))
    one = [_tally_one(spec, precision, kept) for kept in depths]
    kinds = {kind: np.array([kinds[kind] for kinds, _ in one]) for kind in one[0][0]}
    keys = dict.fromkeys(key for _, parts in one for key in parts)
    parts = tuple(
        Part(
            kind,
            spec.rules[kind][place],
            form,
            np.array([parts.get((kind, place, form, when), 0) for _, parts in one]),
            when,
        )
        for kind, place, form, when in keys
    )
    return Tally(kinds, parts, precision.mixture.attention_bytes, precision.mixture.beside_bytes)


def _in_own_types(found: Tally, own_types: Mapping[str, str]) -> Tally:
    """The tally of a GGUF file in which some components have types of their own."""
    parts = tuple(
        replace(part, form=ggml_format(own_types[part.rule.component]))
        if part.rule.component in own_types and is_matrix(part.rule)
        else part
        for part in found.parts
    )
    return replace(found, parts=parts)


def tally_of(spec: ModelSpec, precision: Precision) -> Tally:
    """The tally of the whole model, in plain numbers."""
    if precision not in spec.tallies:
        spec.tallies[precision] = tally(spec, precision, [range(len(spec.layers))]).first
    found: Tally = spec.tallies[precision]
    return found


def gguf_tally(spec: ModelSpec, precision: Precision) -> Tally:
    """That of a GGUF file of the whole model in its own sizes alone."""
    layers = range(len(spec.layers))
    when = next(one for one in circumstances(spec, spec.layers) if one.holds(spec, spec.sizes))
    parts = tuple(
        Part(kind, spec.rules[kind][place], form, count)
        for kind, place, form, count in gguf_formats(spec, precision.gguf, layers, when)
    )
    return _in_own_types(Tally(spec.kind_counts(), parts), dict(precision.own_types))


def is_even(spec: ModelSpec, precision: Precision) -> bool:
    """Whether all layers of a kind keep each tensor in one format."""
    counts = spec.kind_counts()
    return all(part.count == counts.get(part.kind, 1) for part in tally_of(spec, precision).parts)


def shaped_tally(spec: ModelSpec, precision: Precision, counts: Mapping[str, Any]) -> Tally:
    """The tally of models with other `counts` of layers, where it is even."""
    found = tally_of(spec, precision)
    return replace(found, kinds=counts, parts=tuple(replace(p, count=counts.get(p.kind, 1)) for p in found.parts))


_Key = tuple[str, int, Format, Circumstance | None]
"""Kind of layer, place of the rule in it, format, and with which sizes."""


def _tally_one(spec: ModelSpec, precision: Precision, kept: Sequence[int]) -> tuple[dict[str, int], dict[_Key, int]]:
    layers = [spec.layers[layer] for layer in kept]
    kinds = {kind: layers.count(kind) for kind in dict.fromkeys(spec.layers)}
    kinds |= {kind: spec.mtp_layers.count(kind) for kind in spec.mtp_layers}
    if precision.gguf:
        return kinds, {
            (kind, place, form, when): count
            for when in circumstances(spec, layers)
            for kind, place, form, count in gguf_formats(spec, precision.gguf, kept, when)
        }
    attends = [_attends(spec, kind) for kind in layers]
    # The last layer has none behind it.
    feeds = {
        kind: sum(own == kind and after for own, after in zip(layers, attends[1:], strict=False)) for kind in kinds
    }
    parts: dict[_Key, int] = {}
    for kind, rules in spec.rules.items():
        count = kinds.get(kind, 1)
        for place, rule in enumerate(rules):
            if precision.stored and not any(clause.names(rule) for clause in precision.mixture.clauses):
                found = stored_formats(spec, kind, rule, kept)
            else:
                found = _formats(precision, kind, rule, count, feeds.get(kind, 0))
            for form, number in found:
                key = (kind, place, form, None)
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


def formats_in(spec: ModelSpec, precision: Precision, kind: str, rule: Rule) -> dict[int | None, Format]:
    """layer -> the format of a rule's tensor there, for every layer of a kind, as `tally` counts them; None stands for
    the one place of what is in no layer."""
    layers: list[int | None] = [layer for layer, own in enumerate(spec.layers) if own == kind] or [None]
    feeding = {layer for layer, after in enumerate(spec.layers[1:]) if _attends(spec, after)}
    found: dict[int | None, Format] = {}
    for clause in precision.mixture.clauses:
        form = FORMATS[clause.form]
        if not clause.names(rule) or (form.quantised and (is_mtp(kind) or len(rule.matrix) < 2)):
            continue
        left = [layer for layer in layers if layer not in found]
        number = round(clause.share * len(layers))
        chosen = [layer for layer in left if layer in feeding] if clause.feeds_attention else left[:number]
        found |= dict.fromkeys(chosen, form)
    return {layer: found.get(layer, FORMATS[precision.computed]) for layer in layers}


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


def common_width(spec: ModelSpec, kind: str, rule: Rule, sizes: Mapping[str, Any], form: Format) -> Any:
    """A number that a group of `form` divides where the matrices of a rule are kept so: engines join the linears of a
    part of the model, which therefore share one size of group.

    It is the greatest common divisor of the columns of all linears of the rule's component in a layer of `kind`, those
    apart that no group divides; of routed experts, which stay together or not at all, of all."""
    columns = _shape_in(rule, sizes)[1]
    if not form.group or not rule.is_projection:
        return columns
    least = (form.groups or (form.group,))[-1]
    found: Any = 0
    for other in spec.rules[kind]:
        if other.component == rule.component and other.is_projection and other.per_expert == rule.per_expert:
            width = _shape_in(other, sizes)[1]
            found = np.gcd(found, width if rule.per_expert else width * (width % least == 0))
    fits = (columns % least == 0) | rule.per_expert
    together = found * fits + columns * (1 - fits)
    return together if np.ndim(together) else int(together)


def _shape_in(rule: Rule, sizes: Mapping[str, Any]) -> tuple[Any, Any]:
    """(rows, columns) of a rule's matrix; a number has no dimensions: a row of one."""
    matrix = rule.matrix
    *rows, columns = 1, *(numel(dim, sizes) for dim in (reversed(matrix) if rule.transposed else matrix))
    height: Any = 1
    for row in rows:
        height = height * row
    return height, columns


def parts_bytes(spec: ModelSpec, found: Tally, sizes: Mapping[str, Any]) -> Iterator[tuple[str, Part, Any]]:
    """kind, part and the bytes of all its tensors, part by part, those that there are with these sizes; in numbers, not
    arrays, with the format that the tensors take."""
    for part in found.parts:
        own = spec.at(part.kind, sizes)
        height, columns = _shape_in(part.rule, own)
        holds = part.when is None or part.when.holds(spec, sizes)
        if holds is False:
            continue
        if not np.ndim(columns):
            part = replace(part, form=part.form.fitting(int(columns)))
        together = common_width(spec, part.kind, part.rule, own, part.form)
        count = part.count * holds * part.form.stored(height, columns, together, FORMATS["bf16"])
        if part.rule.per_expert:
            count = count * own[EXPERT]
        yield part.kind, part, count
