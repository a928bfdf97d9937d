"""Steps: in which sizes an axis is searched where nobody names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Step:
    """How an axis is searched by default."""

    multiple: int = 1
    """Sizes are multiples of this; halved for models so small that fewer than `fewest` such steps would be left."""

    smallest: int = 1
    """What the multiple is not halved below."""

    most: float = 0.0
    """The largest share of the axis to prune; 0 leaves it alone unless it is named by hand."""

    reason: str = ""
    """Why these numbers."""

    fewest: int = 16
    """How many steps a size must hold: few where each costs a whole axis more of the lattice and gains little."""

    def __post_init__(self) -> None:
        if min(self.multiple, self.smallest, self.fewest) < 1 or not 0 <= self.most < 1:
            raise ValueError(
                f"a step of {self.multiple}, at least {self.smallest}, up to {self.most} cannot be searched"
            )


UNSEARCHED: Final = Step()
"""Of an axis that stays whole unless it is named."""

UNSCORED: Final = Step(16, 8, reason="calibration does not score it")
"""Of an axis that is cut by the size of its weights, where somebody asks for that."""

_QUARTERS: Final = 4
"""Steps of an axis that is searched in quarters of its size."""

HEAD_STEP: Final = Step(
    64,
    8,
    0.5,
    "attention kernels are built for multiples of 32, some of 8; cut to its strongest directions, half of the width "
    "cost little (KL 0.0014 in the built-in model)",
    fewest=_QUARTERS,
)
LATENT_STEP: Final = Step(
    256, 8, 0.5, "full tiles of the grouped matmul; cut to its strongest directions", fewest=_QUARTERS
)

STATE_STEP: Final = Step(
    64,
    4,
    0.5,
    "the scan pads it to a power of two, caches do not; the cheapest cut measured (KL 0.0008 at half of it in the "
    "built-in model)",
    fewest=_QUARTERS,
)
