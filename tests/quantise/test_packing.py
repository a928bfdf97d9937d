"""Matrices on their grids: against float64 arithmetic number by number, and modelopt's own code."""

import importlib.util
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minitron.memory.formats import FORMATS, Format
from minitron.model.decoding import decode
from minitron.model.slabs import dtypes
from minitron.quantise.grids import GRIDS
from minitron.quantise.packing import entries, faked, off_grid, on_grid, pieces
from minitron.quantise.scales import CLIPPINGS, plain_scales, scales_for, searched_scales

WRITTEN = [name for name, form in FORMATS.items() if form.written]


def matrix(rows: int = 24, columns: int = 256, seed: int = 0) -> Tensor:
    found = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05
    return found.bfloat16()


def written(name: str) -> Format:
    return FORMATS[name].in_groups(64) if name == "int4" else FORMATS[name]


def e4m3() -> list[float]:
    """Every number of E4M3 by its definition: 1.f times 2^(e - 7), below 2^-6 f / 8 times it; the last is no number."""
    whole = [Fraction(8 + f, 8) * Fraction(2) ** (e - 7) for e in range(1, 16) for f in range(8)][:-1]
    return sorted(float(one) for one in [*whole, *(Fraction(f, 8 * 64) for f in range(8))])


NUMBERS = {
    "e4m3": e4m3(),
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "int8": [float(one) for one in range(128)],
    "int4": [float(one) for one in range(8)],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_nearest_number_of_a_grid_is_the_nearest(name: str) -> None:
    grid = np.array(NUMBERS[name])
    end = grid[-1]
    whole = np.concatenate([-grid[::-1], grid] + ([[-end - 1]] if name.startswith("int") else []))
    # Between two numbers of the grid at every place, and beyond its ends; then far below its steps.
    asked = torch.linspace(-1.2 * end, 1.2 * end, 20_011, dtype=torch.float32)
    asked = torch.cat([asked, asked / 1000, asked / 100_000, torch.tensor([1e-38, -1e-45, 3e38])])
    found = GRIDS[name].nearest(asked).double().numpy()
    assert set(np.abs(found)) <= set(np.abs(whole))
    distance = np.abs(whole[None] - asked.double().numpy()[:, None]).min(1)
    np.testing.assert_allclose(np.abs(found - asked.double().numpy()), distance, rtol=0, atol=1e-12)


def test_ties_go_to_the_even_number() -> None:
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0])
    assert GRIDS["e2m1"].nearest(halves).tolist() == [0, 1, 1, 2, 2, 4, 4, 0, -4]
    assert torch.signbit(GRIDS["e2m1"].nearest(halves)).tolist() == [False] * 7 + [True] * 2
    assert GRIDS["int4"].nearest(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_e4m3_is_rounded_as_torch_casts_to_it() -> None:
    """Every number of bf16 that is in its range, whose ties are all of the grid's."""
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16).float()
    every = every[every.abs() <= 448]
    found, cast = GRIDS["e4m3"].nearest(every), every.to(torch.float8_e4m3fn).float()
    assert torch.equal(found.view(torch.int32), cast.view(torch.int32))


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_packed_is_read_back_to_the_bit(name: str) -> None:
    weight, form = matrix(), written(name)
    for scales in (plain_scales(form, [weight])[0], searched_scales(form, [weight])[0]):
        numbers = on_grid(form, weight, scales)
        found = decode(pieces(form, numbers, scales), (24, 256))
        assert found is not None
        assert torch.equal(found, off_grid(numbers, scales).bfloat16())


@pytest.mark.parametrize("name", WRITTEN)
def test_entries_are_what_is_packed_and_what_is_counted(name: str) -> None:
    weight, form = matrix(), written(name)
    scales = plain_scales(form, [weight])[0]
    made = {f"m{suffix}": tensor for suffix, tensor in pieces(form, on_grid(form, weight, scales), scales).items()}
    if form.inputs == "static":
        made["m.input_scale"] = torch.ones(())
    promised = {entry.name: (dtypes()[entry.dtype], entry.shape) for entry in entries(form, "m", 24, 256)}
    assert {key: (value.dtype, tuple(value.shape)) for key, value in made.items()} == promised
    assert sum(tensor.nbytes for tensor in made.values()) == form.matrix(24, 256)


def test_integers_as_words_and_halves_by_hand() -> None:
    form = FORMATS["int4"].in_groups(32)
    weight = torch.tensor([[-7.5, -4, -3, -2, -1, 0, 1, 7] * 4])
    scales = plain_scales(form, [weight])[0]
    assert scales.step.tolist() == [[1.0]]
    packed = pieces(form, on_grid(form, weight, scales), scales)
    nibbles = [0, 4, 5, 6, 7, 8, 9, 15]
    word = sum(nibble << (4 * place) for place, nibble in enumerate(nibbles))
    assert packed[".weight_packed"].tolist() == [[word - 2**32] * 4]
    assert packed[".weight_shape"].tolist() == [1, 32]
    form = FORMATS["nvfp4"]
    weight = torch.tensor([[0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0]]) * 448
    packed = pieces(form, on_grid(form, weight, plain_scales(form, [weight])[0]), plain_scales(form, [weight])[0])
    assert (float(packed[".weight_scale_2"]), packed[".weight_scale"].float().tolist()) == (1.0, [[448.0]])
    assert packed[".weight"].tolist() == [[0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F]]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_searched_scale_errs_no_more_than_a_plain_one(name: str) -> None:
    weight, form = matrix(64), written(name)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 4

    def error(scales: list[object]) -> float:
        changed = faked(form, weight, scales[0]) - weight.float()  # type: ignore[arg-type]
        return float((changed.double().square() * importance.double()).sum())

    plain, searched = error([*plain_scales(form, [weight])]), error([*searched_scales(form, [weight], importance)])
    # Of whole numbers of eight bits hardly any clipping gains.
    assert searched <= plain * (1 if form.bits == 8 else 0.9)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_search_finds_what_every_candidate_tried_in_float64_finds(name: str) -> None:
    """Rows, groups or the whole matrix one by one, however the rows are split into runs."""
    weight, form = matrix(9), written(name)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 4
    found = searched_scales(form, [weight], importance)[0]
    whole = float(weight.abs().max())
    grid = np.array(NUMBERS[form.numbers])
    grid = np.concatenate([-grid[:0:-1], grid, [-grid[-1] - 1] if form.numbers.startswith("int") else []])
    size = form.group or (256 if form.row_bytes else weight.numel())
    parts = weight.double().numpy().reshape(-1, size)
    costs = np.broadcast_to(importance.double().numpy(), weight.shape).reshape(-1, size)
    steps = found.step.double().numpy().reshape(-1)

    def cost(part: Any, own: Any, step: float) -> float:
        return float((np.abs(part[:, None] / step - grid).min(1) ** 2 * step**2 * own).sum())

    top = 256.0 if form.numbers == "e2m1" else 448.0
    for part, own, step in zip(parts, costs, steps, strict=True):
        ends = torch.tensor([[np.abs(part).max()]], dtype=torch.float32)
        tried = [scales_for(form, ends * clipping, whole, top) for clipping in CLIPPINGS[form.numbers]]
        least = min(cost(part, own, float(one.step)) for one in tried)
        assert cost(part, own, step) == pytest.approx(least, rel=1e-5)


def test_a_scale_below_zero_turns_the_longer_side() -> None:
    """-8 is a whole number of four bits and 8 is none: where the largest is above zero, a scale below zero keeps it."""
    form = FORMATS["int4"].in_groups(32)
    weight = torch.tensor([[8.0, *range(-7, 8), *range(-7, 8), 0.0], [-8.0, *range(-7, 8), *range(-7, 8), 0.0]])
    scales = searched_scales(form, [weight])[0]
    numbers = on_grid(form, weight, scales)
    assert (numbers[:, 0] == -8).all()
    assert (scales.step[0] < 0).all()
    assert (scales.step[1] > 0).all()
    assert torch.equal(decode(pieces(form, numbers, scales), (2, 32)), off_grid(numbers, scales).bfloat16())


def test_matrices_that_are_joined_share_what_is_scaled_as_a_whole() -> None:
    small, large = matrix(seed=1), 3 * matrix(seed=2)
    for name, key in (("fp8", ".weight_scale"), ("nvfp4", ".weight_scale_2"), ("nvfp4a16", ".weight_scale_2")):
        for how in (plain_scales, searched_scales):
            one, other = how(FORMATS[name], [small, large])
            assert torch.equal(one.stored[key], other.stored[key])


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_of_zeros_stay_zero(name: str) -> None:
    weight = torch.zeros(4, 256)
    for how in (plain_scales, searched_scales):
        scales = how(written(name), [weight])[0]
        assert bool((scales.step > 0).all())
        assert not faked(written(name), weight, scales).any()


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs nvidia-modelopt")
def test_nvfp4_is_packed_as_modelopt_packs_it() -> None:
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    weight, form = matrix(), FORMATS["nvfp4"]
    theirs, scale, second = NVFP4QTensor.quantize(weight.float(), 16)
    scales = plain_scales(form, [weight])[0]
    ours = pieces(form, on_grid(form, weight, scales), scales)
    assert torch.equal(ours[".weight"], theirs._quantized_data)
    assert torch.equal(ours[".weight_scale"].view(torch.uint8), scale.view(torch.uint8))
    assert torch.equal(ours[".weight_scale_2"], second)
