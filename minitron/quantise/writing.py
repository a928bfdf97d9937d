"""A checkpoint in, a quantised one out: a few matrices in memory at a time.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from minitron.allocator import keep_freed_memory
from minitron.cut.companions import RECORD, companions, copy_companions
from minitron.errors import MinitronError
from minitron.escapes import code, markdown
from minitron.files import new_folder, refuse_existing, write_json, write_text
from minitron.memory.formats import FORMATS, stored_format
from minitron.model.checkpoint import Checkpoint
from minitron.model.dequantised import open_plain
from minitron.model.dtypes import DTYPE_KEYS
from minitron.model.shards import SHARD_BYTES, Entry, ShardWriter
from minitron.model.slabs import dtypes, read_ahead
from minitron.model.sources import title
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.stored import with_headers
from minitron.model.weight_files import written
from minitron.progress import Advance, Progress, silent
from minitron.quantise.assigned import Assigned, Matrix, Unit, assign
from minitron.quantise.grids import E2M1_LARGEST, E4M3_LARGEST
from minitron.quantise.packing import INPUT_SCALE, entries, on_grid, pieces
from minitron.quantise.scales import Scales, plain_scales, searched_scales
from minitron.quantise.sections import sections
from minitron.quantise.wanted import Wanted
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rounded:
    """A matrix on its grid."""

    matrix: Matrix
    numbers: Tensor
    """[R, C] fp32."""

    scales: Scales

    inputs: float | None = None
    """The largest size of a number that it reads, where calibration saw that."""


class Rounding(Protocol):
    """How matrices come to their grids."""

    @property
    def told(self) -> str:
        """In a few words, for the record."""

    @property
    def sees_inputs(self) -> bool:
        """Whether it runs the model on text, and so knows what linears read."""

    def rounded(
        self, spec: ModelSpec, checkpoint: Checkpoint, assigned: Assigned, advance: Advance
    ) -> Iterator[Rounded]:
        """Every matrix of `assigned`, in any order; `advance` is told of the bytes of the source that are done."""

    def largest_kv(self, module: str) -> float:
        """The largest size of a number among the keys or values that a module makes, when all are rounded."""


@dataclass(frozen=True)
class Nearest:
    """Every number to the nearest of its grid, with scales by the largest number, or searched."""

    search: bool = True

    @property
    def sees_inputs(self) -> bool:
        """It runs nothing."""
        return False

    @property
    def told(self) -> str:
        """In a few words."""
        return "to nearest, scales searched" if self.search else "to nearest"

    def rounded(
        self, spec: ModelSpec, checkpoint: Checkpoint, assigned: Assigned, advance: Advance
    ) -> Iterator[Rounded]:
        """Unit by unit."""
        for unit in assigned.units:
            weights = [checkpoint.tensor(matrix.name) for matrix in unit]
            yield from rounded_to_nearest(unit, weights, search=self.search)
            advance(sum(weight.nbytes for weight in weights))

    def largest_kv(self, module: str) -> float:
        """Not known."""
        raise MinitronError("the scales of keys and values come from calibration; give --data.")


NEAREST: Final = Nearest()


def rounded_to_nearest(
    unit: Unit, weights: list[Tensor], *, search: bool, importance: Tensor | None = None, inputs: float | None = None
) -> Iterator[Rounded]:
    """The matrices of a unit, whose weights are [R, C] each, on their grids."""
    form = unit[0].form
    scales = searched_scales(form, weights, importance) if search else plain_scales(form, weights)
    for matrix, weight, own in zip(unit, weights, scales, strict=True):
        yield Rounded(matrix, on_grid(form, weight, own), own, inputs)


@dataclass(frozen=True)
class Quantised:
    """What was promised and written."""

    parameters: int
    """Numbers of the model, however they are kept."""

    weight_bytes: int
    """Bytes of all tensors written, scales among them."""

    planned_bytes: int
    """What `plan --weights` counts for the same formats."""

    source_weight_bytes: int

    formats: Mapping[str, int]
    """Format -> matrices kept so."""

    left: Mapping[str, str]
    """Matrix that was to be quantised and stays in 16 bits -> why."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return dict(vars(self))


def quantise(
    model: Path,
    output: Path,
    wanted: Wanted,
    rounding: Rounding = NEAREST,
    *,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    note: Mapping[str, Any] | None = None,
    done: Callable[[Path], None] = lambda partial: None,
    progress: Progress = silent,
) -> Quantised:
    """Write to `output` the checkpoint `model` with its matrices kept as `wanted`; `note` goes into the record and the
    model card.  `done` is told the folder when it is whole, before it gets its name.

    Raises MinitronError, with nothing written, where the checkpoint is not understood whole, quantised already or not
    finite, or cannot be kept so."""
    refuse_existing(output, overwrite=overwrite, inputs=[model])
    companions(model)
    keep_freed_memory()
    spec, checkpoint, _ = open_plain(model)
    checkpoint.check(spec)
    assigned = assign(spec, checkpoint, wanted)
    require_seen(assigned, rounding)
    section, beside = sections(assigned)
    with new_folder(output, overwrite=overwrite) as folder:
        write_text(folder / "config.json", json.dumps(_config(spec, section), indent=2) + "\n")
        for name, document in beside.items():
            write_json(folder / name, document)
        total = sum(checkpoint.headers[name].num_bytes for name in (*assigned.plain, *_names(assigned)))
        promised = [entry for found in _promise(checkpoint, assigned) for entry in found]
        with (
            ShardWriter(folder, promised, shard_bytes=shard_bytes) as writer,
            progress("quantising", total, "B") as advance,
        ):
            _copy(checkpoint, assigned, writer, advance)
            for one in rounding.rounded(spec, checkpoint, assigned, advance):
                _add(one, writer)
            _add_kv(assigned, rounding, writer)
        result = Quantised(
            parameters=checkpoint.num_parameters,
            weight_bytes=writer.weight_bytes,
            planned_bytes=assigned.bytes_planned,
            source_weight_bytes=checkpoint.weight_bytes,
            formats=dict(Counter(matrix.form.name for matrix in assigned.matrices)),
            left=dict(assigned.left),
        )
        with_headers(read_spec(folder), Checkpoint(folder))  # raises where a tensor is missing
        _write_rest(model, folder, spec, result, {"rounded": rounding.told, **(note or {})}, wanted)
        done(folder)
    return result


def require_seen(assigned: Assigned, rounding: Rounding) -> None:
    """Raise MinitronError where something is to be written that only calibration text can tell."""
    if rounding.sees_inputs or not assigned.needs_inputs:
        return
    static = next((matrix.form.name for matrix in assigned.matrices if matrix.form.inputs == "static"), "")
    if not static:
        raise MinitronError(
            "--kv fp8 writes scales of keys and values, which calibration gives; give --data with text."
        )
    others = {"fp8": "fp8-dynamic", "nvfp4": "nvfp4a16"}
    raise MinitronError(
        f"{static} holds a scale for the inputs of every linear, which calibration gives; give --data with text, or "
        f"choose --format {others.get(static, 'int8')}, which needs none."
    )


def _names(assigned: Assigned) -> Iterator[str]:
    return (matrix.name for matrix in assigned.matrices)


def _config(spec: ModelSpec, section: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the source's, in bf16 where that was fp32, with what it says of quantisation at the end."""
    config = written(spec.config)
    if stored_format(spec.config) == "fp32":
        config |= {key: FORMATS["bf16"].config_names[0] for key in DTYPE_KEYS if config.get(key)}
    return config | {"quantization_config": dict(section)}


def _promise(checkpoint: Checkpoint, assigned: Assigned) -> Iterator[tuple[Entry, ...]]:
    """What will be written, in the order of the source's tensors."""
    matrices = {matrix.name: matrix for matrix in assigned.matrices}
    for name in checkpoint.in_order():
        if name in matrices:
            matrix = matrices[name]
            yield entries(matrix.form, matrix.module, *matrix.shape)
        elif name in assigned.plain:
            yield (Entry(name, assigned.plain[name], checkpoint.headers[name].shape),)
    for keys, values in assigned.attention.values():
        names = f"{keys}.k_scale", f"{values}.v_scale"
        yield tuple(Entry(name, assigned.kv_dtype, ()) for name in names)


def _copy(checkpoint: Checkpoint, assigned: Assigned, writer: ShardWriter, advance: Advance) -> None:
    """Write what is not quantised."""
    slabs = (slab for name in assigned.plain for slab in checkpoint.slabs(name))
    with closing(read_ahead(slabs)) as ahead:
        for slab, rows in ahead:
            writer.add(slab.name, rows.to(dtypes()[assigned.plain[slab.name]]))
            advance(slab.num_bytes)


def _add(one: Rounded, writer: ShardWriter) -> None:
    """Write a matrix with its scales."""
    import torch

    form, module = one.matrix.form, one.matrix.module
    for suffix, tensor in pieces(form, one.numbers, one.scales).items():
        writer.add(f"{module}{suffix}", tensor)
    if form.inputs == "static":
        # What was never seen is scaled as if its largest number were 1.
        largest = one.inputs if one.inputs else 1.0
        limit = E4M3_LARGEST * (E2M1_LARGEST if form.numbers == "e2m1" else 1.0)
        writer.add(f"{module}{INPUT_SCALE}", torch.tensor(largest, dtype=torch.float32) / limit)


def _add_kv(assigned: Assigned, rounding: Rounding, writer: ShardWriter) -> None:
    """Write the scales of keys and values, by which the largest that was seen goes to E4M3's largest, as modelopt
    does."""
    import torch

    for keys, values in assigned.attention.values():
        for module, suffix in ((keys, ".k_scale"), (values, ".v_scale")):
            found = torch.tensor(rounding.largest_kv(module), dtype=torch.float32) / E4M3_LARGEST
            kept = torch.where(found > 0, found, torch.ones(())).to(dtypes()[assigned.kv_dtype])
            writer.add(f"{module}{suffix}", kept)


def _write_rest(
    model: Path, folder: Path, spec: ModelSpec, result: Quantised, note: Mapping[str, Any], wanted: Wanted
) -> None:
    copy_companions(model, folder)
    write_json(
        folder / RECORD,
        {
            "made_by": "minitron quantize",
            "source": {"name": title(model), "config": spec.fingerprint},
            "promised": {"parameters": result.parameters, "weight_bytes": result.weight_bytes},
            "format": wanted.form,
            "keep": dict(wanted.keep),
            "kv": wanted.kv,
            "left": dict(result.left),
            "note": dict(note),
        },
    )
    write_text(folder / "README.md", _model_card(model, result, note, wanted))


def _model_card(model: Path, result: Quantised, note: Mapping[str, Any], wanted: Wanted) -> str:
    """The README.md of a quantised checkpoint: what was done to what."""
    rows = [f"| {markdown(name)} | {count:,} |" for name, count in result.formats.items()]
    share = result.weight_bytes / result.source_weight_bytes
    return (
        "\n".join(
            [
                "---",
                "tags: [minitron, quantised]",
                "---",
                f"# {markdown(title(model))}, {wanted.form}",
                "",
                f"Quantised from {code(title(model))} by Minitron. {format_parameters(result.parameters)} parameters, "
                f"{format_bytes(result.weight_bytes)} of weights, {share:.0%} of its source's.",
                "",
                "| format | matrices |",
                "|---|--:|",
                *rows,
                "",
                *(markdown(f"{name} stays in 16 bits: {why}.") for name, why in result.left.items()),
                *(markdown(f"{key}: {value}") for key, value in note.items()),
            ]
        )
        + "\n"
    )
