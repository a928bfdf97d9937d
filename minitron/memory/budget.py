"""Budget: the bytes that a model may use, from a GPU's usable memory, utilization and reserve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minitron.errors import MinitronError
from minitron.memory.gpus import Gpu
from minitron.memory.limits import UNLIMITED, Limits
from minitron.units import format_bytes


@dataclass(frozen=True)
class Budget:
    """The bytes there are, and what else limits a model."""

    usable: int
    """What the device has for software."""

    utilization: float = 1.0
    """The share of it that may be used."""

    reserve: int = 0
    """What something else needs, such as a vision encoder."""

    workspace: int | None = 0
    """What activations and buffers take: a line of the footprint, so not subtracted here; None for the engine's own
    estimate."""

    gpu: Gpu | None = None
    """The device, where it is known."""

    limits: Limits = UNLIMITED
    """What there may be of other things than bytes."""

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise MinitronError(f"a utilization of {self.utilization} is not a share of memory; give one from 0 to 1.")
        if self.reserve < 0 or (self.workspace or 0) < 0:
            raise MinitronError("the reserve and the workspace cannot be negative; give 0 or more.")
        if self.available <= 0:
            raise MinitronError(
                f"nothing is left of {format_bytes(self.usable)} x {self.utilization} after a reserve "
                f"of {format_bytes(self.reserve)}; reserve less or use a larger GPU."
            )

    @property
    def available(self) -> int:
        """What a footprint may come to."""
        return int(self.usable * self.utilization) - self.reserve

    def to_json(self) -> dict[str, Any]:
        """The terms by name, without the device and what else limits a model."""
        terms = {name: getattr(self, name) for name in ("usable", "utilization", "reserve", "workspace")}
        return terms | {"available": self.available}
