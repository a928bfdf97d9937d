"""Source: what a spec knows of the quantised checkpoint that it was read from or cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Measured:
    """What the files of a quantised checkpoint hold, by their headers."""

    spec: Any
    """The checkpoint's own ModelSpec, with none of this."""

    bytes: Mapping[str, int]
    """Name of a tensor in the family's first dialect -> bytes of it with its scales and all else that belongs to it."""

    total: int
    """Bytes of all tensors of the model, those that belong to none of its matrices among them."""

    formats: dict[Any, Any] = field(default_factory=dict, compare=False)
    """What minitron.memory.stored makes of it, kept."""


@dataclass(frozen=True)
class Source:
    """Of a quantised checkpoint: its layers that are left, and what its files hold."""

    layers: tuple[int, ...] = ()
    """Which of its layers each one was, where some were left out: a config names layers by those."""

    measured: Measured | None = None
    """Where the files were looked at."""

    def index(self, index: Mapping[str, int]) -> Mapping[str, int]:
        """Indices in a tensor's name as the checkpoint has them."""
        if not self.layers or "layer" not in index:
            return index
        return {**index, "layer": self.layers[index["layer"]]}

    def left(self, layers: tuple[int, ...] | None) -> Source:
        """The same of a model of which only these layers stay; None for all of them."""
        if layers is None:
            return self
        return Source(tuple(self.index({"layer": layer})["layer"] for layer in layers), self.measured)


ORIGINAL: Final = Source()
"""All layers, of files that were not looked at."""
