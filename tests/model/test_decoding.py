"""Quantised matrices in bf16, against the code that wrote them: modelopt, transformers, or a loop in Python floats."""

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from minitron.model.decoding import E2M1, decode

ROWS, COLUMNS = 48, 64


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()


def exact(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


def by_hand(number: Any) -> Tensor:
    """[R, C] of number(row, column) in float64."""
    return torch.tensor(
        [[number(row, column) for column in range(COLUMNS)] for row in range(ROWS)], dtype=torch.float64
    )


FP8 = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
BYTES = FP8.double().tolist()


@pytest.mark.parametrize("suffix", [".weight_scale", ".weight_scale_inv"])
@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((), lambda row, column: ()),
        ((1,), lambda row, column: (0,)),
        ((1, 1), lambda row, column: (0, 0)),
        ((ROWS,), lambda row, column: (row,)),
        ((ROWS, 1), lambda row, column: (row, 0)),
        ((ROWS, 4), lambda row, column: (row, column // 16)),
        ((3, 4), lambda row, column: (row // 16, column // 16)),
        ((3, 1, 4, 1), lambda row, column: (row // 16, 0, column // 16, 0)),
        ((1, 1, 4, 1), lambda row, column: (0, 0, column // 16, 0)),
    ],
)
def test_floats_of_eight_bits_with_a_scale_of_any_shape(suffix: str, shape: tuple[int, ...], place: Any) -> None:
    # Powers of two and a half more: what is scaled is exact in fp32, so that only the last step rounds.
    scale = torch.randint(1, 8, shape, generator=torch.Generator().manual_seed(2)).float() / 4
    expected = by_hand(lambda row, column: BYTES[row][column] * float(scale[place(row, column)]))
    exact(decode({".weight": FP8, suffix: scale, ".input_scale": torch.ones(())}, (ROWS, COLUMNS)), expected)


def test_a_block_at_the_edge_is_smaller() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(3)).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    expected = weight.double().clone()
    for row, column in itertools.product(range(2), range(3)):
        expected[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)] *= float(scale[row, column])
    exact(decode({".weight": weight, ".weight_scale_inv": scale}, (200, 300)), expected)


def test_block_scales_as_transformers_reads_them(weight: Tensor) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    theirs = Fp8Dequantize(None)._dequantize_one
    scale = torch.rand(3, 4, generator=torch.Generator().manual_seed(4))
    for dtype, scales in (
        (torch.float8_e4m3fn, scale),
        (torch.float8_e5m2, scale),
        (torch.float8_e4m3fn, torch.randint(120, 130, (ROWS, 2), dtype=torch.uint8)),
        (torch.float8_e4m3fn, torch.full((ROWS, 2), 2.0).to(torch.float8_e8m0fnu)),
    ):
        numbers = weight.to(dtype)
        exact(
            decode({".weight": numbers, ".weight_scale_inv": scales}, (ROWS, COLUMNS)),
            theirs(numbers, scales, torch.bfloat16),
        )
    packed = torch.randint(-128, 127, (ROWS, COLUMNS // 2), dtype=torch.int8)
    scales = torch.randint(120, 130, (ROWS, 2), dtype=torch.uint8)
    exact(decode({".weight": packed, ".scale": scales}, (ROWS, COLUMNS)), theirs(packed, scales, torch.bfloat16))


def test_a_cast_without_scales_and_stacked_experts(weight: Tensor) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        exact(decode({".weight": weight.to(dtype)}, (ROWS, COLUMNS)), weight.to(dtype).double())
    stacked = torch.stack([FP8, FP8])
    for scale in (torch.tensor([0.5, 2.0]), torch.tensor([0.5, 2.0])[:, None, None]):
        expected = torch.stack([FP8.double() * 0.5, FP8.double() * 2])
        exact(decode({".weight": stacked, ".weight_scale": scale}, (2, ROWS, COLUMNS)), expected)


def test_nvfp4_as_modelopt_writes_it(weight: Tensor) -> None:
    module = pytest.importorskip("modelopt.torch.quantization.qtensor.nvfp4_tensor")
    packed, scale, double = module.NVFP4QTensor.quantize(weight, 16)
    theirs = packed.dequantize(dtype=torch.float32, scale=scale, double_scale=double, block_sizes={-1: 16})
    pieces = {".weight": packed._quantized_data, ".weight_scale": scale, ".weight_scale_2": double}
    mine = decode({**pieces, ".input_scale": torch.ones(())}, (ROWS, COLUMNS))
    assert mine is not None
    # They multiply in another order: a rounding of bf16 apart.
    torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-8, atol=0)
    assert (mine.float() - weight.float()).abs().max() < 0.6
    factor = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(5)) + 0.5
    scaled = decode({**pieces, ".pre_quant_scale": factor}, (ROWS, COLUMNS))
    assert scaled is not None
    torch.testing.assert_close(scaled.float(), theirs.float() * factor, rtol=2**-7, atol=0)


def test_mxfp4_as_modelopt_writes_it(weight: Tensor) -> None:
    module = pytest.importorskip("modelopt.torch.quantization.qtensor.mxfp4_tensor")
    packed, scale = module.MXFP4QTensor.quantize(weight, 32)
    theirs = packed.dequantize(dtype=torch.float32, scale=scale, block_sizes={-1: 32})
    pieces = {".weight": packed._quantized_data, ".weight_scale": scale.reshape(ROWS, COLUMNS // 32)}
    exact(decode(pieces, (ROWS, COLUMNS)), theirs)


def test_experts_in_mxfp4_as_transformers_reads_them() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(6)
    for rows, columns in ((96, 64), (64, 64)):
        blocks = torch.randint(0, 256, (3, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(110, 130, (3, rows, columns // 32), dtype=torch.uint8, generator=generator)
        exact(
            decode({"_blocks": blocks, "_scales": scales}, (3, columns, rows)),
            convert_moe_packed_tensors(blocks, scales),
        )


def test_nvfp4_and_mxfp4_as_compressed_tensors_writes_them() -> None:
    """Low halves first; the scale of the matrix divides."""
    random.seed(7)
    nibbles = [[random.randrange(16) for _ in range(COLUMNS)] for _ in range(ROWS)]
    packed = torch.tensor(
        [[row[2 * pair] | row[2 * pair + 1] << 4 for pair in range(COLUMNS // 2)] for row in nibbles], dtype=torch.uint8
    )
    scale = torch.randint(1, 400, (ROWS, COLUMNS // 16), generator=torch.Generator().manual_seed(8)).to(
        torch.float8_e4m3fn
    )
    expected = by_hand(lambda row, column: E2M1[nibbles[row][column]] * float(scale[row, column // 16].float()) / 64)
    pieces = {
        ".weight_packed": packed,
        ".weight_scale": scale,
        ".weight_global_scale": torch.tensor([64.0]),
        ".input_global_scale": torch.tensor([3.0]),
    }
    exact(decode(pieces, (ROWS, COLUMNS)), expected)
    powers = torch.randint(120, 130, (ROWS, COLUMNS // 32), dtype=torch.uint8)
    expected = by_hand(lambda row, column: E2M1[nibbles[row][column]] * 2.0 ** (int(powers[row, column // 32]) - 127))
    exact(decode({".weight_packed": packed, ".weight_scale": powers}, (ROWS, COLUMNS)), expected)


def pack_words(numbers: list[list[int]], bits: int) -> Tensor:
    """Rows of unsigned numbers in words of 32 bits, each with as many whole ones as it holds, the lowest first."""
    each = 32 // bits
    words = []
    for row in numbers:
        padded = row + [0] * (-len(row) % each)
        found = [sum(padded[at + i] << (bits * i) for i in range(each)) for at in range(0, len(padded), each)]
        words.append([word - 2**32 if word >= 2**31 else word for word in found])
    return torch.tensor(words, dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [16, 32, 0])
def test_packed_integers_as_compressed_tensors_writes_them(bits: int, zeros: bool, group: int) -> None:
    random.seed(9)
    half, groups = 2 ** (bits - 1), COLUMNS // group if group else 1
    numbers = [[random.randrange(2**bits) for _ in range(COLUMNS)] for _ in range(ROWS)]
    points = [[random.randrange(2**bits) for _ in range(groups)] for _ in range(ROWS)]
    scale = torch.rand(ROWS, groups, generator=torch.Generator().manual_seed(10)).bfloat16()
    pieces = {
        ".weight_packed": pack_words(numbers, bits),
        ".weight_scale": scale,
        ".weight_shape": torch.tensor([ROWS, COLUMNS]),
    }
    if zeros:
        # Packed along the rows.
        columns = [[points[row][at] for row in range(ROWS)] for at in range(groups)]
        pieces[".weight_zero_point"] = pack_words(columns, bits).T

    def number(row: int, column: int) -> float:
        at = column // group if group else 0
        return (numbers[row][column] - (points[row][at] if zeros else half)) * float(scale[row, at])

    exact(decode(pieces, (ROWS, COLUMNS)), by_hand(number))


def test_packed_integers_in_groups_by_activation_order() -> None:
    random.seed(11)
    numbers = [[random.randrange(16) for _ in range(COLUMNS)] for _ in range(ROWS)]
    order = [column % 4 for column in range(COLUMNS)]
    random.shuffle(order)
    scale = torch.rand(ROWS, 4, generator=torch.Generator().manual_seed(12)).bfloat16()
    pieces = {
        ".weight_packed": pack_words(numbers, 4),
        ".weight_scale": scale,
        ".weight_g_idx": torch.tensor(order, dtype=torch.int32),
    }
    expected = by_hand(lambda row, column: (numbers[row][column] - 8) * float(scale[row, order[column]]))
    exact(decode(pieces, (ROWS, COLUMNS)), expected)


def test_integers_of_eight_bits() -> None:
    numbers = torch.randint(-128, 128, (ROWS, COLUMNS), dtype=torch.int8, generator=torch.Generator().manual_seed(13))
    scale = torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(14)).bfloat16()
    expected = by_hand(lambda row, column: int(numbers[row, column]) * float(scale[row, 0]))
    exact(decode({".weight": numbers, ".weight_scale": scale}, (ROWS, COLUMNS)), expected)
    zero = torch.randint(-128, 128, (ROWS, 1), dtype=torch.int8, generator=torch.Generator().manual_seed(15))
    expected = by_hand(lambda row, column: (int(numbers[row, column]) - int(zero[row, 0])) * float(scale[row, 0]))
    pieces = {".weight": numbers, ".weight_scale": scale, ".weight_zero_point": zero}
    exact(decode(pieces, (ROWS, COLUMNS)), expected)


@pytest.mark.parametrize(
    "pieces",
    [
        {".qweight": torch.zeros(8, 48, dtype=torch.int32), ".scales": torch.zeros(1, 48)},
        {".weight": torch.zeros(ROWS * COLUMNS // 2, 1, dtype=torch.uint8), ".weight.absmax": torch.zeros(48)},
        {".weight": torch.zeros(24, COLUMNS, dtype=torch.uint8), ".weight_scale": torch.zeros(24, 4)},
        {".weight_packed": torch.zeros(ROWS, 5, dtype=torch.int32), ".weight_scale": torch.zeros(ROWS, 4)},
    ],
)
def test_what_is_in_no_layout_that_is_known_is_not_guessed(pieces: dict[str, Tensor]) -> None:
    assert decode(pieces, (ROWS, COLUMNS)) is None
