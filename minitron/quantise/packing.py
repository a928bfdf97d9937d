"""A matrix on its format's grid, and as the tensors of a file.

    scales = searched_scales(form, [weight])[0]
    numbers = on_grid(form, weight, scales)          # [R, C] fp32
    weight = off_grid(numbers, scales)               # what a decoder makes of it
    tensors = pieces(form, numbers, scales)          # suffix -> tensor

Shape letters: R rows (outputs) and C columns (inputs) of a matrix, G groups of a row.
Sources: modelopt's export and compressed-tensors' compressors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from minitron.memory.formats import Format
from minitron.model.shards import Entry
from minitron.quantise.grids import GRIDS
from minitron.quantise.scales import Scales, searched_scales

if TYPE_CHECKING:
    from torch import Tensor

_WORD: Final = 8
"""Numbers of four bits in a word of 32."""


def on_grid(form: Format, weight: Tensor, scales: Scales) -> Tensor:
    """[R, C] fp32: the nearest numbers of the grid to what is left of `weight` [R, C] when it is divided by scales."""
    # A zero has no sign of its own: only what is rounded to zero keeps one.
    return GRIDS[form.numbers].nearest((weight.float() + 0.0) / scales.spread(weight.shape[1]))


def off_grid(numbers: Tensor, scales: Scales) -> Tensor:
    """[R, C] fp32: what a decoder makes of numbers of the grid."""
    return numbers * scales.spread(numbers.shape[1])


def faked(form: Format, weight: Tensor, scales: Scales | None = None) -> Tensor:
    """[R, C] fp32: `weight` as it is when it is read back, rounded to nearest; without `scales` with searched ones."""
    found = searched_scales(form, [weight])[0] if scales is None else scales
    return off_grid(on_grid(form, weight, found), found)


def pieces(form: Format, numbers: Tensor, scales: Scales) -> dict[str, Tensor]:
    """What comes behind the module's name -> the tensor in a file, of numbers of the grid [R, C]."""
    return _PACKERS[form.numbers](numbers) | dict(scales.stored)


def _floats(numbers: Tensor) -> dict[str, Tensor]:
    import torch

    return {".weight": numbers.to(torch.float8_e4m3fn)}


def _bytes(numbers: Tensor) -> dict[str, Tensor]:
    import torch

    return {".weight": numbers.to(torch.int8)}


def _halves(numbers: Tensor) -> dict[str, Tensor]:
    """Two numbers a byte, the first in the lower half; the bits of one are its place in 0, 0.5, 1, 1.5, 2, 3, 4, 6, and
    its sign."""
    import torch

    size = numbers.abs()
    place = torch.where(size < 2, 2 * size, torch.where(size < 4, size + 2, size / 2 + 4)).to(torch.uint8)
    bits = place | (torch.signbit(numbers).to(torch.uint8) << 3)
    return {".weight": bits[:, ::2] | (bits[:, 1::2] << 4)}


def _words(numbers: Tensor) -> dict[str, Tensor]:
    """Eight numbers a word of 32 bits, the first in the lowest four, each more by 8 than it is."""
    import torch

    bits = (numbers + 8).to(torch.int64).reshape(len(numbers), -1, _WORD)
    words = (bits << (4 * torch.arange(_WORD))).sum(-1)
    # The words are read as signed ones: from 2^31 on they stand for what is 2^32 less.
    signed = torch.where(words >= 2**31, words - 2**32, words)
    shape = torch.tensor(numbers.shape, dtype=torch.int64)
    return {".weight_packed": signed.to(torch.int32), ".weight_shape": shape}


_PACKERS: Final[Mapping[str, Callable[[Tensor], dict[str, Tensor]]]] = {
    "e4m3": _floats,
    "int8": _bytes,
    "e2m1": _halves,
    "int4": _words,
}
"""A word in minitron.memory.formats.Numbers -> what packs numbers of that grid."""


def entries(form: Format, module: str, rows: int, columns: int) -> tuple[Entry, ...]:
    """The tensors that stand for the [R, C] matrix of a module in a file, its inputs' scale among them."""
    numbers = {
        "e4m3": (Entry(f"{module}.weight", "F8_E4M3", (rows, columns)),),
        "int8": (Entry(f"{module}.weight", "I8", (rows, columns)),),
        "e2m1": (Entry(f"{module}.weight", "U8", (rows, columns // 2)),),
        "int4": (
            Entry(f"{module}.weight_packed", "I32", (rows, columns // _WORD)),
            Entry(f"{module}.weight_shape", "I64", (2,)),
        ),
    }[form.numbers]
    scale = f"{module}.weight_scale"
    if form.numbers == "e2m1":
        scales: tuple[Entry, ...] = (
            Entry(scale, "F8_E4M3", (rows, columns // form.group)),
            Entry(f"{module}.weight_scale_2", "F32", ()),
        )
    elif form.group or form.row_bytes:
        scales = (Entry(scale, "BF16", (rows, columns // form.group if form.group else 1)),)
    else:
        scales = (Entry(scale, "F32", ()),)
    inputs = (Entry(f"{module}{INPUT_SCALE}", "F32", ()),) if form.inputs == "static" else ()
    return numbers + scales + inputs


INPUT_SCALE: Final = ".input_scale"
"""What a linear's inputs are divided by before they are rounded, in formats whose inputs have one scale."""
