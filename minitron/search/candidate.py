"""One architecture of a search: its sizes, its layers, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minitron.memory.footprint import Footprint
from minitron.model.by_layer import ByLayer, write_sizes
from minitron.model.spec import ModelSpec
from minitron.search.depth import Kept
from minitron.search.format_choices import Formats


@dataclass(frozen=True)
class Zone:
    """A warning about one candidate."""

    name: str
    """What it is about."""

    sentence: str
    """What the candidate does, and what was seen of the like."""

    source: str
    """Where it was published."""

    def to_json(self) -> dict[str, str]:
        """The fields by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Candidate:
    """One architecture and what it costs."""

    sizes: Mapping[str, int]
    """config key -> size, num_hidden_layers among them; also those that stay, but none that no layer has any more."""

    kept: Kept
    """Kept layers of the parent."""

    letters: str
    """One letter a kept layer."""

    parameters: int
    """Without the multi-token-prediction block."""

    footprint: Footprint
    fits: bool

    score: float
    """Effective parameters where scores were given, else parameters."""

    warnings: tuple[Zone, ...] = ()
    """Where published runs of the like went wrong."""

    formats: Formats | None = None
    """The formats of its parts; None for those of the workload."""

    measures: Mapping[str, float] = field(default_factory=dict)
    """name -> what it comes to of all that is limited (minitron.memory.limits); empty where only memory is."""

    by_layer: ByLayer = field(default_factory=dict)
    """config key -> kept layer of the parent -> its size, where layers have sizes of their own; `sizes` has the largest
    of them."""

    def left(self, spec: ModelSpec) -> ModelSpec:
        """The model that it leaves of the parent, whose spec is `spec`."""
        return spec.resized(self.sizes, self.kept, self.by_layer)

    def to_json(self) -> dict[str, Any]:
        """The candidate as a JSON object, bytes as whole numbers."""
        return {
            "sizes": dict(self.sizes),
            "layers": self.letters,
            "kept_layers": list(self.kept),
            "parameters": self.parameters,
            "footprint": self.footprint.to_json(),
            "fits": self.fits,
            "score": self.score,
            "warnings": [zone.to_json() for zone in self.warnings],
            **({} if self.formats is None else {"formats": self.formats.to_json()}),
            **({"measures": dict(self.measures)} if self.measures else {}),
            **({"by_layer": write_sizes(self.by_layer)} if self.by_layer else {}),
        }
