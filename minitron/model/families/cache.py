"""What a layer keeps between tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitron.model.dims import Dim, parse


@dataclass(frozen=True)
class Cache:
    """What one layer of a kind keeps between tokens, as dimensions to count."""

    keys_values: str = ""
    """Numbers that a token adds: keys and values of all heads, or a latent that stands for them."""

    window: str = ""
    """The config key of a sliding window: of so many of the last tokens keys and values are kept; empty, or a key that
    says nothing, for all of them."""

    chunked: bool = False
    """Whether that window begins anew with every so many tokens, instead of ending at each token."""

    conv_channels: str = ""
    """Channels of which a sequence keeps the last inputs, one fewer than the convolution has taps."""

    conv_taps: str = ""
    """The axis that counts those taps."""

    state: str = ""
    """Numbers in the recurrent state of a sequence, of any shape."""

    attends: str = ""
    """Numbers of a token that are multiplied with those of each token it attends to: queries with keys, weights with
    values."""

    scans: str = ""
    """Numbers of a token that are multiplied with those of each token of a chunk of the scan; empty for a scan that
    goes token by token."""

    checkpoints: int = 0
    """States of a sequence that vLLM sets aside beside the running one and a prefix's, where it keeps prefixes: its
    mixer of Mamba-2 leaves one at the end of a block in the middle of a step, and its other mixers do not."""

    called: str = ""
    """What reports call layers that keep this."""

    PARTS: ClassVar[tuple[str, ...]] = ("keys_values", "conv_channels", "state", "attends", "scans")
    """The fields that spell a dimension."""

    def __post_init__(self) -> None:
        if bool(self.conv_channels) != bool(self.conv_taps):
            raise ValueError("a convolution has channels and taps")
        if self.window and not self.keys_values:
            raise ValueError("a window is one of keys and values")
        if self.checkpoints and not self.state:
            raise ValueError("what is set aside is a state")

    def dim(self, part: str) -> Dim | None:
        """A field of PARTS, parsed; None where it is empty."""
        text = getattr(self, part)
        return parse(text) if text else None

    @property
    def keeps_state(self) -> bool:
        """Whether a sequence keeps something that does not grow with its tokens."""
        return bool(self.conv_channels or self.state)
