"""Scores: how much every index of every axis matters, as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.arrays import release, save_arrays
from minitron.cut.rotation import Directions
from minitron.cut.scored_axes import ScoredAxes
from minitron.errors import MinitronError
from minitron.files import new_file, refuse_existing
from minitron.model.headers import open_tensors, read_headers
from minitron.model.spec import ModelSpec
from minitron.typed import require

Key = tuple[str, int | None]
"""(axis, layer); the layer is None for an axis that all layers share."""

VERSION: Final = 1

_BASIS: Final = ("matrix", "dual", "strength")


@dataclass(frozen=True, eq=False)
class Scores:
    """What a calibration run found out about a model.  Larger is more important, everywhere.

    `importance` holds, by (axis, layer):
        ("hidden", None)          [hidden]        residual stream channels, combined over all norms
        ("ffn", layer)            [ffn]           MLP channels
        ("shared_ffn", layer)     [shared_ffn]    shared-expert channels
        ("query_head", layer)     [query_head]    attention heads
        ("mamba_channel", layer)  [mamba_head, mamba_head_dim]   from which channels, then heads, are chosen
        ("ssm_state", layer)      [ssm_state]     states of a Mamba mixer, one for all its groups
        ("expert", layer)         [expert]        routed experts
        ("expert_ffn", layer)     [expert, expert_ffn]   each expert's channels by its own tokens
        ("latent_in", layer)      [latent_in]     latent channels that experts read
        ("latent_out", layer)     [latent_out]    latent channels that experts write
        ("layer", None)           [layers]        what leaving out the layer does to the logits
    """

    importance: Mapping[Key, NDArray[np.float64]]

    energy: Mapping[str, NDArray[np.float64]]
    """Norm gain's name (the family's first dialect) -> [channels] mean over tokens of x_c^2 / mean over the norm's
    group of x^2: the share of its input that each channel carries, 1 on average.  From it follows by how much the gain
    grows when the norm averages over fewer channels."""

    model: str
    """Fingerprint of the config scored (ModelSpec.fingerprint)."""

    data: str
    """SHA-256 of the calibration text."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """How they were made: samples, sequence length, estimators, seconds."""

    covariance: Mapping[Key, NDArray[Any]] = field(default_factory=dict)
    """(axis, layer) -> [size, size], or [groups, size, size]: the second moments of what passes in a space that is
    linear on both sides, from which the directions follow that a cut by projection keeps.  ("hidden", None): the
    residual stream divided by its root mean square, over all norms (minitron.cut.rotation); others: the inputs of a
    linear (minitron.cut.refit.input_sites), [expert, size, size] for those of each expert."""

    ridges: Mapping[Key, float] = field(default_factory=dict)
    """(axis, layer) -> the ridge that refits on its covariance take, a share of the mean of the diagonal."""

    bases: Mapping[Key, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = field(default_factory=dict)
    """(axis, layer) -> (matrix, dual, strengths), [size, size] or [groups, size, size] the first two and [size] the
    last: a basis of a space that is linear on both sides, and what each direction is worth, the strongest first
    (importance.score.balanced_bases)."""

    weights: Mapping[str, Any] = field(default_factory=dict)
    """The weights that were scored (minitron.model.identity.weights_of); empty where they lay in memory only."""

    def __post_init__(self) -> None:
        keyed = [(str(key), value) for table in (self.importance, self.covariance) for key, value in table.items()]
        keyed += [(f"a basis of {key}", part) for key, parts in self.bases.items() for part in parts]
        for name, values in [*keyed, *self.energy.items()]:
            if not np.isfinite(values).all():
                raise MinitronError(f"scores: {name} is not finite; check the model and the calibration text.")
            release(values)

    @cached_property
    def directions(self) -> Directions:
        """The principal directions of every covariance."""
        return Directions(self.covariance)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a plan made from these scores names."""
        return {"model": self.model, "data": self.data, "settings": dict(self.settings)}

    def require(self, spec: ModelSpec) -> None:
        """Raise MinitronError unless these are scores of this very model."""
        if self.model != spec.fingerprint:
            raise MinitronError(
                "the scores were made from a model with another config.json; score this one with minitron score."
            )
        for name, found, wanted in self._shapes(spec):
            if found != wanted:
                raise MinitronError(
                    f"the scores hold {name} with the shape {list(found)}, not {list(wanted)}; score the model again."
                )
        negative = [f"energy of {name}" for name, values in self.energy.items() if (values < 0).any()]
        negative += [f"covariance of {write_key(key)}" for key, one in self.covariance.items() if _is_negative(one)]
        if negative:
            raise MinitronError(f"the scores hold a negative {negative[0]}; score the model again.")

    def _shapes(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """(name, shape, the shape that it has in scores of this model) of every array."""
        known = ScoredAxes(spec)
        for key, values in self.importance.items():
            yield f"importance of {write_key(key)}", values.shape, known.indices(*key)
        for key, values in self.covariance.items():
            yield f"covariance of {write_key(key)}", values.shape[-2:], (known.inputs(*key),) * 2
        for key, (matrix, dual, strength) in self.bases.items():
            size = known.size(*key)
            for part in (matrix, dual):
                yield f"a basis of {write_key(key)}", part.shape[-2:], (size,) * 2
            yield f"the strengths of {write_key(key)}", strength.shape[-1:], (size,)
        norms = {one.name: one.shape[-1:] for one in spec.expected() if one.rule.norm is not None and self.energy}
        for name, values in self.energy.items():
            yield f"energy of {name:.80}", values.shape, norms.get(name, ())

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write one safetensors file in one step; raises MinitronError where it exists and may not be replaced."""
        refuse_existing(path, overwrite=overwrite)
        tensors: dict[str, NDArray[Any]] = {
            f"importance/{write_key(key)}": np.ascontiguousarray(found) for key, found in self.importance.items()
        }
        # Eigenvectors of a matrix that was itself estimated need no more digits, and these are the largest arrays.
        tensors |= {
            f"covariance/{write_key(key)}": found.astype(np.float32, copy=False)
            for key, found in self.covariance.items()
        }
        for key, parts in self.bases.items():
            tensors |= {
                f"{table}/{write_key(key)}": np.asarray(part, np.float32)
                for table, part in zip(_BASIS, parts, strict=True)
            }
        tensors |= {f"energy/{name}": np.ascontiguousarray(values) for name, values in self.energy.items()}
        metadata = {"version": VERSION, "model": self.model, "data": self.data, "settings": dict(self.settings)}
        metadata["weights"] = dict(self.weights)
        metadata["ridges"] = {write_key(key): ridge for key, ridge in self.ridges.items()}
        with new_file(path) as partial:
            save_arrays(partial, tensors, {"minitron": json.dumps(metadata)})


@dataclass(frozen=True)
class _Metadata:
    """What a file of scores says beside its arrays, by the names of JSON."""

    version: int
    model: str
    data: str
    settings: dict[str, Any]
    ridges: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)


def load_scores(path: Path) -> Scores:
    """The scores in a file that `Scores.save` wrote; raises MinitronError for any other file."""
    if not path.is_file():
        raise MinitronError(f"{path} does not exist; make it with minitron score.")
    read_headers(path)
    with open_tensors(path, "np") as file:
        text = (file.metadata() or {}).get("minitron", "null")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    try:
        found = json.loads(text, parse_constant=_refuse)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise MinitronError(
                f"{path} does not hold scores of this version of Minitron; make them with minitron score."
            )
        require(found, _Metadata, path, "score the model again")
        return _scores(_Metadata(**found), tensors)
    except (ValueError, KeyError, RecursionError) as error:
        raise MinitronError(f"{path} is damaged ({error}); score the model again.") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"it says {constant}")


def _scores(metadata: _Metadata, tensors: Mapping[str, NDArray[Any]]) -> Scores:
    """Raises ValueError or KeyError where an array is not one that scores have."""
    tables: dict[str, dict[Key, NDArray[Any]]] = {"importance": {}, "covariance": {}, **{name: {} for name in _BASIS}}
    energy: dict[str, NDArray[np.float64]] = {}
    for name, values in tensors.items():
        table, _, rest = name.partition("/")
        if values.dtype.kind != "f" or table not in (*tables, "energy"):
            raise ValueError(f"{name} is no array of scores")
        if table == "energy":
            energy[rest] = values
        else:
            tables[table][read_key(rest)] = values
    if not tables["matrix"].keys() == tables["dual"].keys() == tables["strength"].keys():
        raise ValueError("a basis is not whole")
    return Scores(
        tables["importance"],
        energy,
        metadata.model,
        metadata.data,
        metadata.settings,
        tables["covariance"],
        {read_key(key): float(ridge) for key, ridge in metadata.ridges.items()},
        {key: (matrix, tables["dual"][key], tables["strength"][key]) for key, matrix in tables["matrix"].items()},
        metadata.weights,
    )


def _is_negative(moments: NDArray[Any]) -> bool:
    """Whether second moments are not those of anything."""
    return bool((np.diagonal(moments, axis1=-2, axis2=-1) < 0).any())


def read_key(text: str) -> Key:
    """A key from the text that `write_key` made of it."""
    axis, _, layer = text.partition("/")
    if not axis or (layer and not layer.isdecimal()):
        raise ValueError(f"{text!r:.60} names no axis")
    return axis, int(layer) if layer else None


def write_key(key: Key) -> str:
    """`axis`, or `axis/layer`."""
    axis, layer = key
    return axis if layer is None else f"{axis}/{layer}"
