"""Rows of caches: keys, values and states as a format keeps them, rounded to nearest or stochastically.

A row is what runs along the last dimension: the keys, or values, of one head and one token; the state of one channel.
Its scales are those of the format's layout (minitron.memory.formats.Format.kept), by which its bytes are counted too.

Shape letters: C numbers of a row, G groups of one.

Sources: vLLM 0.32's kernels of int8_per_token_head (the largest number of a row goes to 127) and nvfp4 (a scale in E4M3
for 16 numbers); stochastic rounding goes up with the probability of what is cut off (Croci et al. 2022, doi
10.1098/rsos.211631), as NVIDIA's cvt.rs does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, get_args

from minitron.memory.formats import FORMATS, Format, formats_for
from minitron.quantise.grids import E2M1_LARGEST, E4M3_LARGEST, GRIDS
from minitron.quantise.scales import SMALLEST_GROUP_SCALE

if TYPE_CHECKING:
    from torch import Generator, Tensor

How = Literal["nearest", "stochastic"]
"""How a number goes to the grid."""

HOW: Final[tuple[How, ...]] = get_args(How)

LARGEST: Final[Mapping[str, float]] = {"e4m3": E4M3_LARGEST, "e2m1": E2M1_LARGEST, "int8": 127.0}
"""Numbers of a format -> what the largest of those that share a scale is scaled to, and the end of the grid."""


def formats_that_round(use: Literal["kv", "state"]) -> tuple[str, ...]:
    """The names of the formats in which rows can be simulated: those whose grid is known here."""
    return tuple(name for name in formats_for(use) if not FORMATS[name].quantised or FORMATS[name].numbers in LARGEST)


def rounded(
    rows: Tensor,
    form: Format,
    use: Literal["kv", "state"],
    *,
    scale: float = 1.0,
    noise: Generator | None = None,
) -> Tensor:
    """[..., C] in fp32: the rows as the format keeps them, to the nearest number, or stochastically where there is
    `noise` to draw from.

    `scale` is that of the layer in a checkpoint, and counts where the layout has one."""
    numbers = rows.float()
    if not form.quantised:
        return _float(numbers, form, noise)
    layout, end = form.kept(use), LARGEST[form.numbers]
    if layout.group:
        return _in_groups(numbers, form, layout.group, scale, noise)
    if layout.row_bytes:
        import torch

        most = numbers.abs().amax(-1, keepdim=True)
        step = torch.where(most > 0, most / end, torch.ones_like(most))
    else:
        step = numbers.new_tensor(scale)
    return _on_grid(numbers / step, form.numbers, noise) * step


def _in_groups(numbers: Tensor, form: Format, group: int, scale: float, noise: Generator | None) -> Tensor:
    """A scale in E4M3, times the layer's, for so many numbers of a row; the last group may be shorter."""
    import torch

    columns = numbers.shape[-1]
    padded = torch.nn.functional.pad(numbers, (0, -columns % group))
    padded = padded.reshape(*numbers.shape[:-1], -1, group)
    most = padded.abs().amax(-1, keepdim=True) / (LARGEST[form.numbers] * scale)
    kept = most.clamp(SMALLEST_GROUP_SCALE, E4M3_LARGEST).to(torch.float8_e4m3fn).float() * scale
    found: Tensor = (_on_grid(padded / kept, form.numbers, noise) * kept).flatten(-2)[..., :columns]
    return found


def _on_grid(scaled: Tensor, numbers: str, noise: Generator | None) -> Tensor:
    """The numbers of the grid; what is beyond its ends goes there."""
    if noise is None:
        return GRIDS[numbers].nearest(scaled)
    end = LARGEST[numbers]
    return _up_or_down(scaled, _STEPS[numbers](scaled), noise).clamp(-end, end)


def _up_or_down(numbers: Tensor, step: Tensor | float, noise: Generator) -> Tensor:
    """One of the two neighbours on a grid of this step, so that the mean is the number itself."""
    import torch

    drawn = torch.rand(numbers.shape, generator=noise, device=noise.device).to(numbers.device)
    found: Tensor = (numbers / step + drawn).floor() * step
    return found


def _float(numbers: Tensor, form: Format, noise: Generator | None) -> Tensor:
    """As a float of 16 or 32 bits keeps them: what is larger than it holds becomes infinite, as in kernels."""
    import torch

    dtype: torch.dtype = getattr(torch, form.config_names[0])
    if dtype == torch.float32:
        return numbers
    about = torch.finfo(dtype)
    if noise is not None:
        numbers = _up_or_down(numbers, _float_step(numbers, about.eps, about.tiny), noise)
    return numbers.to(dtype).float()


def _float_step(numbers: Tensor, eps: float, tiny: float) -> Tensor:
    """The distance of neighbouring floats around each number, where `eps` is that above one and `tiny` the smallest
    that is not subnormal: the power of two in the number, times eps."""
    import torch

    mantissa, exponent = torch.frexp(numbers.abs().clamp(min=tiny))
    return torch.ldexp(torch.full_like(mantissa, eps / 2), exponent)


_STEPS: Final[Mapping[str, Callable[[Tensor], Tensor | float]]] = {
    "e4m3": partial(_float_step, eps=2.0**-3, tiny=2.0**-6),
    "e2m1": partial(_float_step, eps=0.5, tiny=1.0),
    "int8": lambda numbers: 1.0,
}
"""Numbers of a format -> the distance of neighbours around each number."""
