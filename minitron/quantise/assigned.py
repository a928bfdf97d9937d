"""Which tensors of a checkpoint are kept in which format, and which stay: what `plan --weights` counts, name by name.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, KV_SCALE_BYTES, Format, stored_format
from minitron.memory.precision import common_width, formats_in, precision_of
from minitron.model.axes import EXPERT
from minitron.model.checkpoint import Checkpoint
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import tied_names
from minitron.model.tensors import is_mtp
from minitron.quantise.wanted import Wanted


@dataclass(frozen=True)
class Matrix:
    """A linear that is quantised."""

    name: str
    """Of its weight in the source."""

    kind: str
    rule: Rule
    index: Mapping[str, int]
    shape: tuple[int, ...]

    form: Format
    """With the group that its width takes."""

    @property
    def module(self) -> str:
        """The name of the module that holds it."""
        return self.name.removesuffix(".weight")

    @property
    def layer(self) -> int | None:
        """The layer it is in; None for the output layer."""
        return self.index.get("layer")

    @property
    def expert(self) -> int | None:
        """The expert it is of; None where it is no routed expert's."""
        return self.index.get(EXPERT)


Unit = tuple[Matrix, ...]
"""Matrices of one layer, and expert, that read the same inputs: engines join them, so that they are scaled together."""


@dataclass(frozen=True)
class Assigned:
    """The formats of a checkpoint's tensors."""

    wanted: Wanted

    units: tuple[Unit, ...]
    """What is quantised, layer by layer."""

    plain: Mapping[str, str]
    """Name -> dtype as safetensors spells it, of every other tensor that is written."""

    ignored: tuple[str, ...]
    """The modules of matrices that stay as they are, by their names in the source; an output layer that shares the
    embedding's numbers among them, which engines build all the same."""

    left: Mapping[str, str]
    """The same by name -> why, of those that were to be quantised and cannot be."""

    attention: Mapping[int, tuple[str, str]]
    """Layer -> (module of the keys, module of the values), where scales of those are kept."""

    bytes_planned: int
    """What `plan --weights` counts, with the scales of keys and values."""

    @property
    def matrices(self) -> Iterator[Matrix]:
        """All of them."""
        return (matrix for unit in self.units for matrix in unit)

    @property
    def kv_dtype(self) -> str:
        """As safetensors spells it: that of the scales of keys and values."""
        return {4: "F32", 2: "BF16"}[KV_SCALE_BYTES[FORMATS[self.wanted.form].method]]

    @property
    def needs_inputs(self) -> bool:
        """Whether something in the files says how large the inputs of linears, or keys and values, become."""
        return any(matrix.form.inputs == "static" for matrix in self.matrices) or bool(self.attention)


def assign(spec: ModelSpec, checkpoint: Checkpoint, wanted: Wanted) -> Assigned:
    """The formats of a checkpoint in plain numbers, whose spec is `spec`.

    Raises MinitronError for a component that the model does not have or whose tensors cannot be kept as asked, and
    where nothing would be quantised."""
    from minitron.memory.precision import tally_of, weight_bytes

    precision = precision_of(spec, wanted.form, wanted.keep)
    forms = {
        (kind, rule): formats_in(spec, precision, kind, rule) for kind, rules in spec.rules.items() for rule in rules
    }
    kinds = {rule: kind for kind, rules in spec.rules.items() for rule in rules}
    extras = checkpoint.extras(spec)
    found: dict[tuple[object, ...], list[Matrix]] = {}
    plain: dict[str, str] = {}
    ignored: list[str] = []
    left: dict[str, str] = {}
    for name in checkpoint.in_order():
        header = checkpoint.headers[name]
        matrix: Matrix | None = None
        if name in extras:
            if extras[name].carried:
                plain[name] = header.dtype
        else:
            rule, index = spec.find(name)
            kind = spec.layers[index["layer"]] if "layer" in index else kinds[rule]
            form = forms[kind, rule].get(index.get("layer"), forms[kind, rule].get(None, FORMATS["bf16"]))
            if form.quantised:
                matrix = _matrix(spec, name, header.shape, kind, rule, index, form, left)
            plain[name] = _dtype(spec, header.dtype, form)
        if matrix is not None:
            del plain[name]
            found.setdefault(_joined(matrix), []).append(matrix)
        elif name in plain and name.endswith(".weight") and len(header.shape) > 1:
            ignored.append(name.removesuffix(".weight"))
    if not found:
        raise MinitronError(
            f"nothing of this model can be kept in {wanted.form}: no linear has a width that its groups divide."
        )
    ignored += [name.removesuffix(".weight") for name in tied_names(spec)]
    units = sorted(map(tuple, found.values()), key=_place)
    counted = sum(weight_bytes(spec, tally_of(spec, precision), spec.sizes))
    attention = dict(_attention(spec, checkpoint)) if wanted.kv == "fp8" else {}
    scale = KV_SCALE_BYTES[FORMATS[wanted.form].method]
    scales = 0 if precision.mixture.attention_bytes else 2 * scale * len(attention)
    return Assigned(wanted, tuple(units), plain, tuple(ignored), left, attention, counted + scales)


def units_of(spec: ModelSpec, wanted: Wanted) -> tuple[Unit, ...]:
    """What would be quantised of a checkpoint of this model, layer by layer; the names are those of the rules.

    Raises MinitronError as `assign` does, but where nothing would be."""
    precision = precision_of(spec, wanted.form, wanted.keep)
    found: dict[tuple[object, ...], list[Matrix]] = {}
    forms: dict[tuple[str, Rule], dict[int | None, Format]] = {}
    for one in spec.expected():
        if one.is_mtp or one.is_aside:
            continue
        key = (one.kind, one.rule)
        if key not in forms:
            forms[key] = formats_in(spec, precision, *key)
        layer = one.index.get("layer")
        form = forms[key].get(layer, forms[key].get(None, FORMATS["bf16"]))
        if form.quantised:
            matrix = _matrix(spec, one.name, one.shape, one.kind, one.rule, one.index, form, {})
            if matrix is not None:
                found.setdefault(_joined(matrix), []).append(matrix)
    return tuple(sorted(map(tuple, found.values()), key=_place))


def _joined(matrix: Matrix) -> tuple[object, ...]:
    """What the matrices of a unit have in common."""
    rule = matrix.rule
    return (matrix.kind, matrix.layer, matrix.expert, rule.component, rule.reads, rule.inputs, matrix.form)


def _place(unit: Unit) -> tuple[int, str, int]:
    first = unit[0]
    return (
        -1 if first.layer is None else first.layer,
        first.rule.name,
        -1 if first.expert is None else first.expert,
    )


def _matrix(
    spec: ModelSpec,
    name: str,
    shape: tuple[int, ...],
    kind: str,
    rule: Rule,
    index: Mapping[str, int],
    form: Format,
    left: dict[str, str],
) -> Matrix | None:
    """What is to be quantised; None, with the reason in `left`, where its width cannot be."""
    if not rule.is_linear or rule.is_stacked or rule.transposed or is_mtp(kind) or len(shape) != 2:
        why = (
            "the experts of a layer are one tensor, for whose scales engines know no name"
            if rule.is_stacked
            else "inputs stand before outputs, and no engine reads that"
            if rule.transposed
            else "it is no linear, and no engine reads that"
        )
        raise MinitronError(f"{name} cannot be kept in {form.name}: {why}; add --keep {rule.component}=bf16.")
    width = common_width(spec, kind, rule, spec.at(kind, spec.sizes), form)
    group = form.group_for(width)
    if group is None:
        least = (form.groups or (form.group,))[-1]
        left[name] = f"{shape[1]:,} columns are no multiple of {least}, the smallest group of {form.name}"
        return None
    return Matrix(name, kind, rule, index, shape, form.in_groups(group))


def _dtype(spec: ModelSpec, dtype: str, form: Format) -> str:
    """The dtype in which what is not quantised is written: as it is stored, but for a model in fp32 and for what a
    published mixture widens."""
    if form.name == "fp32" and dtype in ("BF16", "F16"):
        return "F32"
    if dtype == "F32" and form.name != "fp32" and stored_format(spec.config) == "fp32":
        return "BF16"
    return dtype


def _attention(spec: ModelSpec, checkpoint: Checkpoint) -> Iterator[tuple[int, tuple[str, str]]]:
    """(layer, (module of the keys, module of the values)) of every layer that keeps keys and values.

    Raises MinitronError where a layer has no linear for each: no engine knows a name for their scales then."""
    names = checkpoint.stored_names(spec)
    for layer, kind in enumerate(spec.layers):
        cache = spec.cache(kind)
        if cache is None or not cache.keys_values:
            continue
        pair = []
        for part in ("k_proj", "v_proj"):
            rule = next((one for one in spec.rules[kind] if one.name.endswith(f".{part}.weight")), None)
            if rule is None or rule.component != "attention":
                raise MinitronError(
                    f"the keys and values of {spec.family.name} models do not come from a k_proj and a v_proj, whose "
                    "scales engines read; leave out --kv fp8."
                )
            pair.append(names[rule.pattern.format({"layer": layer})].removesuffix(".weight"))
        yield layer, (pair[0], pair[1])
