"""The formats of a quantised checkpoint: as its config gives them, layer by layer, or as its files measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Final

from minitron.memory.formats import FORMATS, Format, format_of, stored_format
from minitron.model.axes import EXPERT
from minitron.model.dims import numel
from minitron.model.families import Rule
from minitron.model.matrix_layout import Scheme
from minitron.model.quantised.quantisation import Quantisation
from minitron.model.quantised.source import Measured
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp

_BESIDE: Final = "beside"


def doubts_of(spec: ModelSpec, found: Quantisation) -> tuple[str, ...]:
    """What is not known of the bytes of a quantised model of which only the config is here."""
    if spec.source.measured is not None:
        return ()
    doubts = list(found.doubts)
    guessed = [scheme.told for scheme in found.schemes if not scheme.known]
    if guessed:
        doubts.append(f"the layout of {', '.join(guessed)} is not known to the byte")
    if found.schemes and not any(_means_anything(spec, found, kind) for kind in spec.rules):
        doubts.append("this model has none of the modules that it quantises")
    return tuple(doubts)


def _means_anything(spec: ModelSpec, found: Quantisation, kind: str) -> bool:
    """Whether a matrix in some layer of a kind is quantised."""
    layers = range(len(spec.layers))
    expert = {EXPERT: 0}
    return any(
        scheme_of(spec, rule, index | (expert if EXPERT in rule.pattern.axes else {})) is not None
        for rule in spec.rules[kind]
        for index in _places(spec, kind, layers)
    )


def _is_whole(spec: ModelSpec) -> bool:
    """Whether a spec is that of the files, not of something cut from them."""
    found = spec.source.measured
    return found is not None and bool(spec.fingerprint == found.spec.fingerprint)


def stored_origin(spec: ModelSpec, found: Quantisation) -> str:
    """Where the bytes come from: read in the files, published layouts, or an estimate where something is not known."""
    if _is_whole(spec):
        return "exact"
    return "published" if found.known and not doubts_of(spec, found) else "estimated"


def stored_source(spec: ModelSpec, found: Quantisation) -> str:
    """What the bytes are counted by, as a sentence."""
    if _is_whole(spec):
        return f"as the safetensors headers say: {found.told}"
    if spec.source.measured is not None:
        return f"as the model's own files hold theirs: {found.told}"
    computed = stored_format(spec.config)
    doubts = "; ".join(doubts_of(spec, found))
    if not found.schemes:
        return f"unknown: {doubts}; every tensor is counted in {computed}, as if it were not quantised"
    told = f"as config.json says: {found.told}, the rest in {computed}"
    return f"{told}; {doubts}" if doubts else told


def beside_bytes(spec: ModelSpec) -> int:
    """Bytes in the files that no matrix has: scales of keys and values, and what rounding leaves."""
    return 0 if spec.source.measured is None else int(_measured(spec.source.measured)[_BESIDE])


def stored_formats(spec: ModelSpec, kind: str, rule: Rule, layers: Sequence[int]) -> Iterator[tuple[Format, int]]:
    """The formats of a rule's tensor in those of the `layers` of `spec` that are of `kind`, and how many have each."""
    measured = None if spec.source.measured is None else _measured(spec.source.measured)
    counts: Counter[Format] = Counter()
    for index in _places(spec, kind, layers):
        scheme = _scheme(spec, kind, rule, index)
        counts[_plain(spec, scheme) if measured is None else measured[kind, rule.name, scheme]] += 1
    yield from counts.items()


def _plain(spec: ModelSpec, scheme: Scheme | None) -> Format:
    return FORMATS[stored_format(spec.config)] if scheme is None else format_of(scheme)


def _places(spec: ModelSpec, kind: str, layers: Sequence[int]) -> list[dict[str, int]]:
    """The indices, those of experts apart, of every place of a kind: of the `layers` that are of it."""
    if kind in spec.layers:
        elsewhere = spec.family.elsewhere(spec.text)
        return [{"layer": layer, **elsewhere.get(layer, {})} for layer in layers if spec.layers[layer] == kind]
    if kind == "mtp":
        return [{"mtp_last": len(spec.mtp_layers) - 1}]
    if is_mtp(kind):
        return [{"mtp_layer": layer} for layer, own in enumerate(spec.mtp_layers) if own == kind]
    return [{}]


def _experts(spec: ModelSpec, kind: str, rule: Rule, index: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The indices of each tensor of a rule in one place of a kind."""
    named = range(spec.at(kind, spec.sizes)[EXPERT]) if EXPERT in rule.pattern.axes else (None,)
    for expert in named:
        yield dict(index) if expert is None else {**index, EXPERT: expert}


def _scheme(spec: ModelSpec, kind: str, rule: Rule, index: Mapping[str, int]) -> Scheme | None:
    """That of a rule's tensor in one place of a kind: of a layer's experts that of the most."""
    each = _experts(spec, kind, rule, index)
    if spec.quantisation is None or not spec.quantisation.by_expert:
        return scheme_of(spec, rule, next(each))
    counts: Counter[Any] = Counter(scheme_of(spec, rule, one) for one in each)
    found: Scheme | None = counts.most_common(1)[0][0]
    return found


def scheme_of(spec: ModelSpec, rule: Rule, index: Mapping[str, int]) -> Scheme | None:
    """How the config says that a tensor is quantised; None where it stays in plain numbers."""
    return None if spec.quantisation is None else spec.quantisation.scheme(rule, spec.source.index(index))


def _measured(stored: Measured) -> Mapping[Any, Any]:
    """(kind, rule's name, scheme) -> the format of such matrices, whose bytes are those in the files.

    Where the scheme's own layout gives them, that is the format; else a matrix takes its share of what is there."""
    if stored.formats:
        return stored.formats
    spec, found = stored.spec, stored.formats
    total = stored.total
    for kind, rules in spec.rules.items():
        for rule in rules:
            held: dict[Scheme | None, list[int]] = {}
            for index in _places(spec, kind, range(len(spec.layers))):
                names = (rule.pattern.format(one) for one in _experts(spec, kind, rule, index))
                held.setdefault(_scheme(spec, kind, rule, index), []).append(
                    sum(stored.bytes.get(name, 0) for name in names)
                )
            rows, columns = _shape(rule, spec.at(kind, spec.sizes))
            experts = spec.routed(kind)[0] if rule.per_expert else 1
            for scheme, sizes in held.items():
                form = _fitted(_plain(spec, scheme), rows, columns, sum(sizes) // (len(sizes) * experts))
                found[kind, rule.name, scheme] = form
                total -= sum(sizes) if is_mtp(kind) else len(sizes) * experts * form.matrix(rows, columns)
    found[_BESIDE] = total
    return found


def _shape(rule: Rule, sizes: Mapping[str, int]) -> tuple[int, int]:
    dims = reversed(rule.matrix) if rule.transposed else rule.matrix
    *rows, columns = 1, *(int(numel(dim, sizes)) for dim in dims)
    return prod(rows), columns


def _fitted(form: Format, rows: int, columns: int, size: int) -> Format:
    """The format, or where that is not what the files hold the nearest one that is of this size."""
    numbers = rows * columns
    if size == form.matrix(rows, columns):
        return form
    for other in FORMATS.values():
        if not other.quantised and size == other.matrix(rows, columns):
            return other
    bits = max(8 * size // numbers, 1)
    return Format(form.name, bits=bits, measured=(size, numbers), native=form.native, origin="exact", note=form.note)
