"""The highest learning rate where none is given."""

from __future__ import annotations

import math
from typing import Final

PUBLISHED: Final = 1e-4
"""Of students with hidden sizes of 3,072 and 4,096 (Muralidharan et al. 2024, arXiv 2407.14679, section 4)."""

WIDTH: Final = 4096


def usual_rate(hidden_size: int, *, is_rounded: bool = False) -> float:
    """The highest learning rate of a student so wide, to two digits: PUBLISHED, and of one narrower than WIDTH as much
    more as the square root of how much narrower it is.

    The root comes near the best of the rates that were tried on two small models, where PUBLISHED leaves up to 1.7
    times the KL (benchmarks/RESULTS.md, "The default learning rate").  `is_rounded`: a student in fewer bits has lost
    little and takes PUBLISHED whatever its width."""
    if is_rounded:
        return PUBLISHED
    return float(f"{PUBLISHED * math.sqrt(max(1.0, WIDTH / hidden_size)):.2g}")
