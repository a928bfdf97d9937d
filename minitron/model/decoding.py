"""The numbers of a quantised matrix: what stands for it in a file in, the matrix in bf16 out.

Shape letters: R rows (outputs), C columns (inputs), E experts, G groups of a row.  What stands for a matrix is given by
what comes behind its module's name: `.weight`, `.weight_scale`, `_blocks`.

Sources of the layouts: transformers' integrations (finegrained_fp8, mxfp4), modelopt's export, and compressed-tensors'
compressors, in which the fp32 scale of a matrix in NVFP4 divides and its zero points are packed along the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

Pieces = Mapping[str, "Tensor"]

E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen numbers of FP4, by their bits."""

BESIDE: Final = (
    *(".input_scale", ".input_global_scale", ".input_zero_point", ".activation_scale", ".input_scale_ub"),
    *(".k_scale", ".v_scale", ".output_scale", ".weight_shape"),
)
"""What says nothing of the weights: scales of inputs, of keys and of values."""

_FACTOR: Final = ".pre_quant_scale"
"""By which a linear multiplies its inputs: what its weights were divided by."""

_BITS: Final = (4, 8, 2, 3, 5, 6, 7, 1)
"""Of packed integers, the usual ones first: words hold four numbers of seven bits as they do of eight."""

_BLOCKS: Final = (128, 64, 32, 16)
"""Sides of blocks: the last one of a row may be cut off, so that the grid of scales alone does not tell."""


def decode(pieces: Pieces, shape: tuple[int, ...]) -> Tensor | None:
    """The matrix of this shape in bf16, or None where nothing here reads what stands for it."""
    import torch

    factor = pieces.get(_FACTOR)
    kept = {name: piece for name, piece in pieces.items() if name not in BESIDE and name != _FACTOR}
    for names, read in _READERS.items():
        if names <= kept.keys() and not kept.keys() - names - _OPTIONAL:
            try:
                found = read(kept, shape)
                if found is None or tuple(found.shape) != shape:
                    continue
                if factor is not None:
                    found = found * factor.float()
            except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError):
                continue  # shapes or dtypes that are not those of the layout
            return found.to(torch.bfloat16)
    return None


def _floats(pieces: Pieces, shape: tuple[int, ...]) -> Tensor | None:
    """Floats or integers of eight bits, one a number, with no scale or one of any shape."""
    import torch

    weight = pieces[".weight"]
    if weight.dtype == torch.uint8 or weight.dtype.itemsize != 1 or tuple(weight.shape) != shape:
        return None
    names = (".weight_scale_inv", ".weight_scale", ".scale")
    scale = next((pieces[name] for name in names if name in pieces), None)
    numbers = weight.float()
    zero = pieces.get(".weight_zero_point")
    if zero is not None:
        numbers = numbers - _spread(zero.float(), shape)
    return numbers if scale is None else numbers * _spread(_value(scale), shape)


def _value(scale: Tensor) -> Tensor:
    """A scale as fp32: a byte is a power of two, as in the microscaling formats."""
    import torch

    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127)
    return scale.float()


def _spread(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A scale of a matrix, of rows, of groups or of blocks, as a number for each of [..., R, C]."""
    if scale.numel() == 1:
        return scale.reshape((1,) * len(shape))
    while scale.dim() > len(shape) and 1 in scale.shape[1:]:
        # [R / 128, 1, C / 128, 1]: the sides of a block stand as ones.
        scale = scale.squeeze(scale.shape.index(1, 1))
    if scale.dim() < len(shape):
        # One number a row, or one an expert.
        leading = scale.shape == shape[: scale.dim()]
        scale = scale.reshape(*scale.shape, *((1,) * (len(shape) - scale.dim()))) if leading else scale[..., None]
    for side in (-2, -1):
        count, size = scale.shape[side], shape[side]
        if count not in (1, size):
            block = next((block for block in _BLOCKS if -(-size // block) == count), -(-size // count))
            scale = scale.repeat_interleave(block, side).narrow(side, 0, size)
    return scale


def _nibbles(packed: Tensor) -> Tensor:
    """[..., C] fp32 of [..., C / 2] bytes, the lower half of each first."""
    import torch

    bits = torch.stack((packed.view(torch.uint8) & 15, packed.view(torch.uint8) >> 4), -1)
    numbers: Tensor = torch.tensor(E2M1)[bits.flatten(-2).int()]
    return numbers


def _fp4(pieces: Pieces, shape: tuple[int, ...]) -> Tensor | None:
    """E2M1 with a scale for each group of a row; in NVFP4 with one for the matrix beside them."""
    packed = pieces.get(".weight_packed", pieces.get(".weight"))
    scale = next((pieces[name] for name in (".weight_scale", ".scale", ".weight_scale_inv") if name in pieces), None)
    if packed is None or scale is None or packed.dtype.itemsize != 1 or packed.shape[-1] * 2 != shape[-1]:
        return None
    scales = _value(scale)
    if ".weight_scale_2" in pieces:
        scales = scales * _spread(pieces[".weight_scale_2"].float(), tuple(scales.shape))
    if ".weight_global_scale" in pieces:
        scales = scales / _spread(pieces[".weight_global_scale"].float(), tuple(scales.shape))
    return _nibbles(packed) * _spread(scales, shape)


def _blocks(pieces: Pieces, shape: tuple[int, ...]) -> Tensor | None:
    """[E, R, G, 16] bytes and [E, R, G] exponents of MXFP4, as the model has them: inputs before outputs."""
    blocks, scales = pieces["_blocks"], pieces["_scales"]
    if blocks.shape[:-1] != scales.shape:
        return None
    numbers = _nibbles(blocks) * _value(scales)[..., None]
    return numbers.flatten(-2).mT.contiguous()


def _words(pieces: Pieces, shape: tuple[int, ...]) -> Tensor | None:
    """Integers in words of 32 bits along the rows, each less half of its range."""
    import torch

    words = pieces[".weight_packed"]
    if words.dtype != torch.int32:
        return None
    bits = next((bits for bits in _BITS if -(-shape[-1] // (32 // bits)) == words.shape[-1]), None)
    if bits is None:
        return None
    numbers = _unpacked(words, bits)[..., : shape[-1]]
    scale, zero = pieces[".weight_scale"].float(), pieces.get(".weight_zero_point")
    groups = scale.shape[-1]
    order = pieces.get(".weight_g_idx")
    group = torch.arange(shape[-1]) // -(-shape[-1] // groups) if order is None else order.long()
    if zero is not None:
        zeros = _unpacked(zero.mT, bits).mT[: shape[-2]] if zero.dtype == torch.int32 else zero.float()
        numbers = numbers - zeros[..., group]
    return numbers * (scale[..., group] if groups > 1 else scale)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """[..., C] fp32 of [..., W] words of 32 bits that each hold 32 // bits numbers, the lowest first."""
    import torch

    shifts = bits * torch.arange(32 // bits)
    numbers = (words.long()[..., None] >> shifts) & (2**bits - 1)
    found: Tensor = numbers.flatten(-2).float() - 2 ** (bits - 1)
    return found


_OPTIONAL: Final = frozenset(
    {
        *(".weight_scale", ".weight_scale_inv", ".scale", ".weight_scale_2", ".weight_global_scale"),
        *(".weight_zero_point", ".weight_g_idx"),
    }
)

_READERS: Final[Mapping[frozenset[str], Callable[[Pieces, tuple[int, ...]], Tensor | None]]] = {
    frozenset({"_blocks", "_scales"}): _blocks,
    frozenset({".weight_packed", ".weight_scale"}): lambda pieces, shape: (
        _words(pieces, shape) if pieces[".weight_packed"].dtype.itemsize == 4 else _fp4(pieces, shape)
    ),
    frozenset({".weight"}): lambda pieces, shape: (
        _fp4(pieces, shape) if pieces[".weight"].shape[-1] * 2 == shape[-1] else _floats(pieces, shape)
    ),
}
"""What must stand there -> what reads it."""
