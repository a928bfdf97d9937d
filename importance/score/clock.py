"""What each part of scoring takes: what is observed while the model runs is told apart from the model's own pass.

On a GPU, which works on while Python goes ahead, what a part takes is counted where Python next waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

PASS: Final = "model's pass"
CHANNELS: Final = "channels, norms, experts"
MOMENTS: Final = "second moments"
COVARIANCE: Final = "covariance of the stream"
STATES: Final = "states"
BASES: Final = "projection bases"
OUTPUTS: Final = "gradients by outputs"
REMOVAL: Final = "surgeon and ridges"
LAYERS: Final = "layers"

PARTS: Final = "seconds_by_part"
"""Under which scores have it in their settings."""


@dataclass
class Clock:
    """Seconds by part.  Parts may be nested: the time of an inner one is not counted in the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Part -> seconds so far, in the order in which parts began."""

    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Until the block ends time counts for the part `name`."""
        self._count()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        """Charge the innermost part with the time that went by."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
