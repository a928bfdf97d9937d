"""The schemes of quantised checkpoints, as their files hold them.

Sources: the code that writes or loads the files: transformers' integrations (fp8, mxfp4, fbgemm_fp8, bitsandbytes),
compressed-tensors' compressors, modelopt's export, AutoGPTQ's and AutoAWQ's linear layers."""

from __future__ import annotations

from typing import Final

from minitron.model.matrix_layout import Layout, Scheme

FP16_BYTES: Final = 2
FP32_BYTES: Final = 4


def fp8_of_matrix(scales: int) -> Scheme:
    """E4M3 with `scales` bytes of scales for the whole matrix: of its weights, and of its inputs where they are."""
    return Scheme("fp8", Layout(bits=8, matrix_bytes=scales))


def fp8_of_rows(scale_bytes: int, matrix_bytes: int = 0) -> Scheme:
    """E4M3 with a scale a row."""
    return Scheme("fp8", Layout(bits=8, row_bytes=scale_bytes, matrix_bytes=matrix_bytes))


def fp8_of_blocks(rows: int, columns: int, scale_bytes: int = FP32_BYTES, matrix_bytes: int = 0) -> Scheme:
    """E4M3 with a scale for every block of rows x columns."""
    layout = Layout(bits=8, group=columns, group_rows=rows, group_bytes=scale_bytes, matrix_bytes=matrix_bytes)
    return Scheme("fp8", layout)


def nvfp4(group: int, *, inputs: bool, column_bytes: int = 0) -> Scheme:
    """E2M1 with an E4M3 scale a group and an fp32 one for the matrix, and for its inputs where they are quantised."""
    scales = FP32_BYTES * (1 + inputs)
    layout = Layout(bits=4, group=group, group_bytes=1, matrix_bytes=scales, column_bytes=column_bytes)
    return Scheme("nvfp4", layout)


def mx(bits: int, group: int = 32) -> Scheme:
    """Floats of 8, 6 or 4 bits with an exponent of a byte for each group (OCP Microscaling Formats, 2023)."""
    return Scheme(f"mxfp{bits}", Layout(bits=bits, group=group, group_bytes=1))


def gptq(bits: int, group: int) -> Scheme:
    """qweight, qzeros, fp16 scales, and g_idx, a number for every input; `group` is 0 for whole columns."""
    layout = Layout(
        bits=bits,
        group=group,
        group_bytes=FP16_BYTES if group else 0,
        zero_bits=bits if group else 0,
        row_bytes=0 if group else FP16_BYTES,
        column_bytes=4,
    )
    return Scheme(f"int{bits}", layout)


def awq(bits: int, group: int) -> Scheme:
    """qweight, qzeros and fp16 scales."""
    return Scheme(f"int{bits}", Layout(bits=bits, group=group, group_bytes=FP16_BYTES, zero_bits=bits))


def guess(bits: int, group: int = 0, *, zeros: bool = True) -> Scheme:
    """Integers with a scale of two bytes and, with `zeros`, a zero point of as many bits for each group or row."""
    scales = FP16_BYTES + (FP16_BYTES if zeros else 0)
    layout = Layout(bits=bits, group=group, group_bytes=scales if group else 0, row_bytes=0 if group else scales)
    return Scheme(f"int{bits}", layout, known=False)


def bnb_8bit() -> Scheme:
    """int8 with an fp32 scale a row (SCB) and a byte that names the layout."""
    return Scheme("int8", Layout(bits=8, row_bytes=FP32_BYTES, matrix_bytes=1))


def bnb_4bit(kind: str, *, double: bool, block: int = 64) -> Scheme:
    """Four bits with an absolute maximum for every block of 64 numbers: fp32, or quantised itself to a byte with an
    fp32 one for every 256 blocks; the maps of both, and about 150 bytes of JSON."""
    maps = 16 * FP32_BYTES + (256 * FP32_BYTES if double else 0)
    layout = Layout(
        bits=4,
        group=block,
        group_bytes=1 if double else FP32_BYTES,
        outer=256 if double else 0,
        matrix_bytes=maps + (156 if double else 88),
    )
    return Scheme(kind or "fp4", layout, known=False)
