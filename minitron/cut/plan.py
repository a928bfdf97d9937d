"""Plan: the layers, indices and bases that a cut keeps, as a readable file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut
from minitron.cut.fitting import AGAIN, require_cuts, require_factors, require_folds, require_layers
from minitron.cut.refit import folds_of
from minitron.cut.scores import Key, Scores, read_key, write_key
from minitron.cut.selection import STREAM, Fallback, Keep, choose, gains, rotates
from minitron.errors import MinitronError
from minitron.files import read_json, refuse_existing, sole, write_bytes, write_json
from minitron.model.axes import ACTIVE, LARGEST
from minitron.model.by_layer import ByLayer, read_sizes, write_sizes
from minitron.model.dims import Indices
from minitron.model.spec import ModelSpec
from minitron.typed import require

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
    """Kept indices, or a basis, of every axis that shrinks; empty for an architecture without a choice of indices."""

    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Norm gain's name -> the factor of each of its groups, or of a rotated stream the gain itself."""

    folds: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Tensor's name -> [inputs, kept inputs]: what it is multiplied by in the place of a cut of its inputs
    (minitron.cut.refit)."""

    parameters: int = 0
    """Promised parameters, the multi-token-prediction block left out."""

    scores: Mapping[str, Any] | None = None
    """Fingerprint of the scores that chose the indices."""

    weights: Mapping[str, Any] = field(default_factory=dict)
    """The weights that these were made of (minitron.model.identity.weights_of)."""

    report: Mapping[str, Any] = field(default_factory=dict)
    """The search that led here: budget, workload, candidates."""

    formats: Mapping[str, str] = field(default_factory=dict)
    """Part of the model (a component, or kv) -> the format in which what is left of it is to be kept, where the search
    chose that; a cut itself writes none of them."""

    by_layer: ByLayer = field(default_factory=dict)
    """config key -> kept layer -> its size, in the place of the one for all layers."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise MinitronError("the plan keeps no layer; keep at least one.")
        if list(self.layers) != sorted(set(self.layers)):
            raise MinitronError("the plan's layers must ascend without repetition; plan again.")

    @property
    def rotates(self) -> bool:
        """Whether the residual stream is cut in another basis (minitron.cut.rotation)."""
        return isinstance(self.keep.get(STREAM), Basis)

    def has_indices(self, spec: ModelSpec) -> bool:
        """Whether the plan, which is one of `spec`, says which indices stay, and not only how many."""
        cut = {axis for key in self.sizes.keys() | self.by_layer.keys() for axis in spec.keys.get(key, (key,))}
        return bool(self.keep) or cut <= {ACTIVE}

    def require(self, spec: ModelSpec) -> None:
        """Raise MinitronError unless this plan was made for this very model, and fits it in every part."""
        if self.model != spec.fingerprint:
            raise MinitronError("the plan was made for a model with another config.json; plan for this model again.")
        require_layers(spec, self.layers)
        target = self.target(spec)
        require_cuts(spec, target, self.layers, self.keep)
        require_factors(spec, self.layers, self.keep, self.gains)
        require_folds(spec, target, self.layers, self.folds)

    def target(self, spec: ModelSpec) -> ModelSpec:
        """The spec of the model that is left."""
        # Folding the final norm's gain into the output layer alone parts the two.
        return (spec.untied() if self.rotates else spec).resized(self.sizes, self.layers, self.by_layer)

    @cached_property
    def arrays(self) -> bytes:
        """The bases and folds as one safetensors file, in fp32; empty where there are none."""
        from safetensors.numpy import save

        tensors = {}
        for key, chosen in self.keep.items():
            if isinstance(chosen, Basis):
                tensors[f"matrix/{write_key(key)}"] = np.ascontiguousarray(chosen.matrix, np.float32)
                if chosen.dual is not None:
                    tensors[f"dual/{write_key(key)}"] = np.ascontiguousarray(chosen.dual, np.float32)
        tensors |= {f"fold/{name}": np.ascontiguousarray(matrix) for name, matrix in self.folds.items()}
        return save(tensors) if tensors else b""

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the plan, and what it holds of bases beside it (`beside`), the plan last.

        Raises MinitronError where the plan exists and may not be replaced."""
        with sole(path, beside(path)):
            refuse_existing(path, overwrite=overwrite)
            if self.arrays:
                # Bases without a plan are what a run has left that was killed between the two.
                refuse_existing(beside(path), overwrite=overwrite or not path.exists())
                write_bytes(beside(path), self.arrays)
            write_json(path, self.to_json())

    def files(self) -> dict[str, Any]:
        """The plan as files of a folder of its own: name -> JSON document or bytes."""
        bases = {beside(Path(FILE)).name: self.arrays} if self.arrays else {}
        return {FILE: self.to_json(), **bases}

    def to_json(self) -> dict[str, Any]:
        """The plan as one JSON document; indices as ranges such as `0-511,514`."""
        return {
            "version": VERSION,
            "model": self.model,
            "sizes": dict(self.sizes),
            **({"by_layer": write_sizes(self.by_layer)} if self.by_layer else {}),
            "layers": write_ranges(np.array(self.layers)),
            "parameters": self.parameters,
            "scores": self.scores,
            "weights": dict(self.weights),
            "keep": {write_key(key): _write_cut(chosen) for key, chosen in self.keep.items()},
            "bases": hashlib.sha256(self.arrays).hexdigest() if self.arrays else None,
            "gains": {name: list(factors) for name, factors in self.gains.items()},
            "report": dict(self.report),
            **({"formats": dict(self.formats)} if self.formats else {}),
        }


def beside(path: Path) -> Path:
    """Where the bases of the plan in the file `path` are."""
    return path.with_suffix(".bases.safetensors")


@dataclass(frozen=True)
class _ScoresDocument:
    """What a plan's document says of its scores (minitron.cut.scores.Scores.fingerprint)."""

    model: str
    data: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Document:
    """A plan's JSON document."""

    version: int
    model: str
    sizes: dict[str, int]
    layers: str
    parameters: int
    scores: _ScoresDocument | None
    keep: dict[str, str | list[str]]
    gains: dict[str, list[float]]
    report: dict[str, Any]
    bases: str | None = None
    weights: dict[str, Any] | None = None
    formats: dict[str, str] | None = None
    by_layer: dict[str, dict[str, int]] | None = None


def load_plan(path: Path) -> Plan:
    """The plan in a file that `Plan.save` wrote, or in the folder of a report; raises MinitronError for any other."""
    path = path / FILE if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("version") != VERSION or "layers" not in value:
        raise MinitronError(f"{path} is not a plan of this version of Minitron; make one with minitron plan -o.")
    require(value, _Document, path, AGAIN)
    bases = _read_bases(path, value.get("bases"))
    try:
        return Plan(
            model=value["model"],
            sizes=value["sizes"],
            layers=tuple(read_ranges(value["layers"]).tolist()),
            by_layer=read_sizes(value.get("by_layer") or {}),
            keep=_read_keep(value["keep"], bases),
            gains={name: tuple(factors) for name, factors in value["gains"].items()},
            folds={name.removeprefix("fold/"): array for name, array in bases.items() if name.startswith("fold/")},
            parameters=value["parameters"],
            scores=value["scores"],
            weights=value.get("weights") or {},
            report=value["report"],
            formats=value.get("formats") or {},
        )
    except (KeyError, ValueError) as error:
        raise MinitronError(f"{path} is damaged ({error}); {AGAIN}.") from None


def make_plan(
    spec: ModelSpec,
    named_sizes: Mapping[str, int],
    layers: tuple[int, ...],
    scores: Scores | None = None,
    *,
    by_layer: ByLayer | None = None,
    fallback: Fallback | None = None,
    rotate: bool | None = None,
    refit: bool = True,
    project: bool = True,
    report: Mapping[str, Any] | None = None,
    formats: Mapping[str, str] | None = None,
) -> Plan:
    """The plan that leaves `layers` and the given sizes, of some layers sizes of their own (`by_layer`); with scores
    it says which indices stay.

    `rotate` cuts the residual stream to its strongest directions instead of its best channels; None does so where the
    scores hold its covariance and the output layer is not tied to the embedding, which it would part.  `refit` fits
    what loses inputs to those that stay, wherever the scores hold their second moments (minitron.cut.refit); `project`
    cuts every space that the scores hold a basis of to its strongest directions.  Raises
    MinitronError where the sizes cannot be reached from this model, the scores are another model's or hold no
    covariance to rotate by."""
    target = spec.resized(named_sizes, layers)
    changed = {key: size for key, size in target.named_sizes.items() if spec.named_sizes.get(key) != size}
    changed.pop("num_hidden_layers", None)
    keep: dict[Key, Cut] = {}
    factors: dict[str, tuple[float, ...]] = {}
    folds: dict[str, NDArray[np.float32]] = {}
    if scores is not None:
        scores.require(spec)
        if rotate and STREAM not in scores.directions:
            raise MinitronError("the scores hold no covariance of the residual stream; score the model again.")
        if rotate is None:
            rotate = rotates(spec, scores)
        keep = choose(spec, scores, changed, layers, fallback, by_layer=by_layer, rotate=rotate, project=project)
        factors = gains(spec, scores, keep, layers)
        folds = folds_of(scores).of(spec, keep, layers) if refit else {}
    parent = spec.untied() if isinstance(keep.get(STREAM), Basis) else spec
    return Plan(
        model=spec.fingerprint,
        sizes=changed,
        layers=layers,
        by_layer=by_layer or {},
        keep=keep,
        gains=factors,
        folds=folds,
        parameters=int(parent.resized(named_sizes, layers, by_layer).parameters().total),
        scores=None if scores is None else scores.fingerprint,
        weights={} if scores is None else scores.weights,
        report=report or {},
        formats=formats or {},
    )


def _read_bases(path: Path, wanted: str | None) -> Mapping[str, NDArray[np.float32]]:
    if wanted is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = beside(path)
    if not file.is_file() or hashlib.sha256(data := file.read_bytes()).hexdigest() != wanted:
        raise MinitronError(f"{path} needs {file}, which is missing or belongs to another plan; make the plan again.")
    try:
        bases: dict[str, NDArray[np.float32]] = load(data)
    except SafetensorError as error:
        raise MinitronError(f"{file} is no readable safetensors file ({error}); {AGAIN}.") from None
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in bases.values()):
        raise MinitronError(f"{file} holds numbers that are not finite, or of another kind; {AGAIN}.")
    return bases


def _read_keep(value: Mapping[str, Any], bases: Mapping[str, NDArray[np.float32]]) -> dict[Key, Cut]:
    return {
        read_key(key): Basis(
            bases[f"matrix/{key}"].astype(np.float64),
            bases[f"dual/{key}"].astype(np.float64) if f"dual/{key}" in bases else None,
        )
        if f"matrix/{key}" in bases
        else _read_indices(kept)
        for key, kept in value.items()
    }


def _write_cut(chosen: Cut) -> Any:
    if isinstance(chosen, Basis):
        return f"a basis of {chosen.kept} directions"
    return _write_indices(chosen)


def _write_indices(kept: Indices) -> Any:
    return write_ranges(kept) if kept.ndim == 1 else [write_ranges(row) for row in kept]


def _read_indices(value: Any) -> Indices:
    return read_ranges(value) if isinstance(value, str) else np.stack([read_ranges(row) for row in value])


def write_ranges(kept: Indices) -> str:
    """Ascending indices as text: `0-511,514`."""
    breaks = np.flatnonzero(np.diff(kept) != 1) + 1
    runs = np.split(kept, breaks)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run))


def read_ranges(text: str) -> Indices:
    """The indices that `write_ranges` wrote; raises ValueError for another text."""
    if re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text, re.ASCII) is None:
        raise ValueError(f"{text!r:.40} are no indices")
    pieces = [[int(end) for end in piece.split("-")] for piece in text.split(",")]
    if max(end for ends in pieces for end in ends) > LARGEST:
        raise ValueError(f"{text!r:.40} are too many indices")
    found = np.concatenate([np.arange(ends[0], ends[-1] + 1, dtype=np.int64) for ends in pieces])
    if not len(found) or (np.diff(found) <= 0).any():
        raise ValueError(f"the indices {text!r:.40} do not ascend")
    return found
