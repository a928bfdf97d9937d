"""Rows of caches on their grids: by brute force over all numbers of a format, and bytes as a plan counts them."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from minitron.memory.formats import FORMATS
from minitron.quantise.rows import formats_that_round, rounded

E2M1 = sorted({sign * size for sign in (1, -1) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)})


def all_floats(dtype: torch.dtype) -> list[float]:
    """Every finite number of a float of 8 or 16 bits, from its bits."""
    bits = (
        torch.arange(256, dtype=torch.uint8) if dtype.itemsize == 1 else torch.arange(-(2**15), 2**15).to(torch.int16)
    )
    numbers = bits.view(dtype).double()
    return sorted(set(numbers[numbers.isfinite()].tolist()))


GRID = {
    "fp8": all_floats(torch.float8_e4m3fn),
    "nvfp4": E2M1,
    "int8": [float(number) for number in range(-127, 128)],
    "fp16": all_floats(torch.float16),
    "bf16": all_floats(torch.bfloat16),
}


def steps_of(rows: Tensor, name: str, use: str, scale: float) -> Tensor:
    """What each number is divided by, in float64 and by hand."""
    wide, most = rows.double(), rows.double().abs()
    if name == "int8":
        return most.amax(-1, keepdim=True) / 127
    if name == "fp8":
        return most.amax(-1, keepdim=True) / 448 if use == "state" else torch.full((1,), scale, dtype=torch.float64)
    if name == "nvfp4":
        block = most.reshape(*rows.shape[:-1], -1, 16).amax(-1) / 6 / scale
        grid = np.array([number for number in GRID["fp8"] if number > 0])
        kept = grid[np.abs(grid - block.numpy()[..., None]).argmin(-1)]
        return torch.from_numpy(kept).repeat_interleave(16, -1) * scale
    return torch.ones_like(wide[..., :1])


def neighbours(rows: Tensor, name: str, step: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the grid at or below, and at or above, each one."""
    grid, scaled = np.array(GRID[name]), (rows.double() / step).numpy().clip(GRID[name][0], GRID[name][-1])
    place = np.searchsorted(grid, scaled, side="right") - 1
    above = np.where(grid[place] == scaled, place, np.minimum(place + 1, len(grid) - 1))
    return torch.from_numpy(grid[place]) * step, torch.from_numpy(grid[above]) * step


def some_rows() -> Tensor:
    rows = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    return rows * torch.tensor([1e-3, 1.0, 30.0])[:, None, None]


CASES = [
    (name, use, scale)
    for use in ("kv", "state")
    for name, scale in product(formats_that_round(use), (1.0, 2.5))  # type: ignore[arg-type]
    if name != "fp32" and (scale == 1.0 or (use == "kv" and name in ("fp8", "nvfp4")))
]


@pytest.mark.parametrize(("name", "use", "scale"), CASES)
def test_the_nearest_number_of_all(name: str, use: str, scale: float) -> None:
    rows = some_rows()
    found = rounded(rows, FORMATS[name], use, scale=scale)  # type: ignore[arg-type]
    step = steps_of(rows, name, use, scale)
    below, above = neighbours(rows, name, step)
    nearest = torch.minimum((rows.double() - below).abs(), (rows.double() - above).abs())
    # What is beyond the grid's ends is as far off as they are; fp32 is as near as its own precision allows.
    off = (found.double() - rows.double()).abs() - nearest
    assert bool((off.abs() <= 1e-6 * rows.abs().amax(-1, keepdim=True)).all())
    assert found.dtype == torch.float32
    assert not torch.equal(found, rows)


@pytest.mark.parametrize(("name", "use", "scale"), CASES)
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(name: str, use: str, scale: float) -> None:
    rows, noise = some_rows(), torch.Generator().manual_seed(1)
    step = steps_of(rows, name, use, scale)
    below, above = neighbours(rows, name, step)
    wide, times = above - below, 400
    drawn = [rounded(rows, FORMATS[name], use, scale=scale, noise=noise) for _ in range(times)]  # type: ignore[arg-type]
    for one in drawn:
        off = torch.minimum((one.double() - below).abs(), (one.double() - above).abs())
        assert bool((off <= 1e-3 * torch.where(wide > 0, wide, step.expand_as(wide))).all())
    inside = (rows.double() >= below) & (rows.double() <= above) & (wide > 0)
    mean = torch.stack(drawn).double().mean(0)
    # The mean of so many draws between two neighbours lies within five of its standard deviations, at most half a
    # distance divided by the root of their number.
    assert inside.sum() > rows.numel() // 2
    assert float(((mean - rows.double()).abs() / wide)[inside].max()) < 5 * 0.5 / times**0.5


def test_one_seed_draws_the_same() -> None:
    first, second, other = (
        rounded(some_rows(), FORMATS["int8"], "state", noise=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_small_steps_add_up_only_where_they_are_rounded_stochastically() -> None:
    """What published models show: a state that changes by less than half a step stands still where it is rounded to
    nearest, and moves on average where it is not."""
    form, noise = FORMATS["int8"], torch.Generator().manual_seed(0)
    plain = near = drawn = torch.cat([torch.tensor([127.0]), torch.zeros(63)])[None]
    change = torch.cat([torch.zeros(1), torch.full((63,), 0.2)])
    for _ in range(50):
        plain = plain + change
        near = rounded(near + change, form, "state")
        drawn = rounded(drawn + change, form, "state", noise=noise)
    assert float(plain[0, 1]) == pytest.approx(10.0)
    assert torch.equal(near[0, 1:], torch.zeros(63))
    assert float(drawn[0, 1:].mean()) == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_nothing_stays_nothing(name: str) -> None:
    for use in ("kv", "state"):
        if use in FORMATS[name].uses:
            for noise in (None, torch.Generator().manual_seed(0)):
                found = rounded(torch.zeros(2, 32), FORMATS[name], use, noise=noise)  # type: ignore[arg-type]
                assert torch.equal(found, torch.zeros(2, 32))


def test_fp32_is_left_alone() -> None:
    rows = some_rows()
    assert torch.equal(rounded(rows, FORMATS["fp32"], "state", noise=torch.Generator()), rows)


def stored(rows: Tensor, name: str, use: str) -> int:
    """The bytes of what a decoder would need: packed numbers and scales."""
    scales: dict[tuple[str, str], Callable[[], int]] = {
        ("int8", "kv"): lambda: 4 * rows[..., 0].numel(),
        ("int8", "state"): lambda: 4 * rows[..., 0].numel(),
        ("fp8", "state"): lambda: 4 * rows[..., 0].numel(),
        ("nvfp4", "kv"): lambda: rows.numel() // 16,
    }
    numbers = {"int8": 1.0, "fp8": 1.0, "nvfp4": 0.5, "fp16": 2.0, "bf16": 2.0}[name]
    return int(rows.numel() * numbers) + scales.get((name, use), lambda: 0)()


@pytest.mark.parametrize(("name", "use"), sorted({(name, use) for name, use, _ in CASES}))
def test_a_plan_counts_what_is_rounded(name: str, use: str) -> None:
    rows = some_rows()
    counted = FORMATS[name].kept(use).rows(rows[..., 0].numel(), rows.shape[-1])  # type: ignore[arg-type]
    assert counted == stored(rows, name, use)
