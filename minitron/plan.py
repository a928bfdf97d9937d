"""Plan: what is kept of a model, as a file that a person can open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from minitron.axes import Indices
from minitron.errors import MinitronError
from minitron.files import read_json, refuse_existing, write_json
from minitron.scores import Key, Scores
from minitron.selection import Fallback, Keep, choose, gains
from minitron.spec import ModelSpec

VERSION: Final = 1

FILE: Final = "plan.json"
"""A plan's name beside the report that led to it."""


@dataclass(frozen=True)
class Plan:
    """An architecture cut from a model and, once scores have spoken, the indices that stay."""

    model: str
    """Fingerprint of the config of the model to cut (ModelSpec.fingerprint)."""

    sizes: Mapping[str, int]
    """config key -> new size, for the sizes that change."""

    layers: tuple[int, ...]
    """Kept layers, ascending."""

    keep: Keep = field(default_factory=dict)
    """Kept indices of every axis that shrinks; empty for an architecture without a choice of indices."""

    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Norm gain's name -> the factor of each of its groups."""

    parameters: int = 0
    """Promised parameters, the multi-token-prediction block left out."""

    scores: Mapping[str, Any] | None = None
    """Fingerprint of the scores that chose the indices."""

    report: Mapping[str, Any] = field(default_factory=dict)
    """The search that led here: budget, workload, candidates."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise MinitronError("the plan keeps no layer; keep at least one.")
        if list(self.layers) != sorted(set(self.layers)):
            raise MinitronError("the plan's layers must ascend without repetition; plan again.")

    @property
    def has_indices(self) -> bool:
        """Whether the plan says which indices stay, and not only how many."""
        return bool(self.keep) or not self.sizes

    def require(self, spec: ModelSpec) -> None:
        """Raise MinitronError unless this plan was made for this very model."""
        if self.model != spec.fingerprint:
            raise MinitronError("the plan was made for a model with another config.json; plan for this model again.")

    def target(self, spec: ModelSpec) -> ModelSpec:
        """The spec of the model that is left."""
        return spec.resized(self.sizes, self.layers)

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write plan.json in one step; raises MinitronError where it exists and may not be replaced."""
        refuse_existing(path, overwrite=overwrite)
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The plan as one JSON document; indices as ranges such as `0-511,514`."""
        return {
            "version": VERSION,
            "model": self.model,
            "sizes": dict(self.sizes),
            "layers": _write_ranges(np.array(self.layers)),
            "parameters": self.parameters,
            "scores": self.scores,
            "keep": {_write_key(key): _write_indices(kept) for key, kept in self.keep.items()},
            "gains": {name: list(factors) for name, factors in self.gains.items()},
            "report": dict(self.report),
        }


def load_plan(path: Path) -> Plan:
    """The plan in a file that `Plan.save` wrote, or in the folder of a report; raises MinitronError for any other."""
    path = path / FILE if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("version") != VERSION or "layers" not in value:
        raise MinitronError(f"{path} holds no plan of this version of Minitron; make one with minitron plan -o.")
    try:
        return Plan(
            model=value["model"],
            sizes={key: int(size) for key, size in value["sizes"].items()},
            layers=tuple(_read_ranges(value["layers"]).tolist()),
            keep={_read_key(key): _read_indices(kept) for key, kept in value["keep"].items()},
            gains={name: tuple(factors) for name, factors in value["gains"].items()},
            parameters=int(value["parameters"]),
            scores=value["scores"],
            report=value["report"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MinitronError(f"{path} is a damaged plan ({error!r}); make it again with minitron plan -o.") from None


def make_plan(
    spec: ModelSpec,
    named_sizes: Mapping[str, int],
    layers: tuple[int, ...],
    scores: Scores | None = None,
    *,
    fallback: Fallback | None = None,
    report: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that leaves `layers` and the given sizes; with scores it says which indices stay.

    Raises MinitronError where the sizes cannot be reached from this model or the scores are another model's."""
    target = spec.resized(named_sizes, layers)
    changed = {key: size for key, size in target.named_sizes.items() if spec.named_sizes.get(key) != size}
    changed.pop("num_hidden_layers", None)
    keep: dict[Key, Indices] = {}
    factors: dict[str, tuple[float, ...]] = {}
    if scores is not None:
        scores.require(spec)
        keep = choose(spec, scores, changed, layers, fallback)
        factors = gains(spec, scores, keep, layers)
    return Plan(
        model=spec.fingerprint,
        sizes=changed,
        layers=layers,
        keep=keep,
        gains=factors,
        parameters=int(target.parameters().total),
        scores=None if scores is None else scores.fingerprint,
        report=report or {},
    )


def _write_key(key: Key) -> str:
    axis, layer = key
    return axis if layer is None else f"{axis}/{layer}"


def _read_key(text: str) -> Key:
    axis, _, layer = text.partition("/")
    return axis, int(layer) if layer else None


def _write_indices(kept: Indices) -> Any:
    return _write_ranges(kept) if kept.ndim == 1 else [_write_ranges(row) for row in kept]


def _read_indices(value: Any) -> Indices:
    return _read_ranges(value) if isinstance(value, str) else np.stack([_read_ranges(row) for row in value])


def _write_ranges(kept: Indices) -> str:
    breaks = np.flatnonzero(np.diff(kept) != 1) + 1
    runs = np.split(kept, breaks)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run))


def _read_ranges(text: str) -> Indices:
    pieces = [piece.split("-") for piece in text.split(",")]
    return np.concatenate([np.arange(int(ends[0]), int(ends[-1]) + 1, dtype=np.int64) for ends in pieces])
