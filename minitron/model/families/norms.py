"""What a family's table says of the gain of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Norm:
    """What the gain of a norm belongs to."""

    role: Literal["before", "after", "inside", "final"]
    """Where it stands: before a block, which reads the residual stream through it; after a block, whose output passes
    it on the way to the stream; inside a block, over heads or a rank; or between the last layer and the output."""

    kind: Literal["rms", "layer"] = "rms"
    """What it divides by: the root mean square, or the standard deviation around the mean (LayerNorm).  The gain of a
    LayerNorm over fewer channels is corrected too, but not exactly: its mean runs over fewer channels as well."""

    in_stream: bool = False
    """For one before a block: whether the stream goes on as what comes out, beside what the block makes of it."""

    plus_one: bool = False
    """Whether the tensor holds the gain less one."""

    module: str = ""
    """The module that normalises, where it does not hold the gain: what it gives is then without it."""

    over_root: bool = False
    """Whether the model divides what comes out by the square root of the size: the gain takes up what a cut of it
    changes."""

    group: str = ""
    """The axis over whose indices the mean runs apart; empty for one mean over the last dimension."""

    gated_after: str = ""
    """The config key that says whether the gate that the norm is given multiplies its output (true) or its input."""

    @property
    def offset(self) -> float:
        """What the gain is more than the tensor."""
        return 1.0 if self.plus_one else 0.0
