"""Inspect: layers, sizes and parameters of a checkpoint, from config.json and the safetensors headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron.model.dtypes import DTYPES, stated_dtype
from minitron.progress import Note, no_note

if TYPE_CHECKING:
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds."""

    spec: ModelSpec
    """Its layers, sizes and parameters."""

    mtp: int
    """Parameters of the multi-token-prediction block that is there."""

    extras: Mapping[str, int]
    """What stands beside the model's own tensors -> how many numbers: a copy of the embedding, a vision tower."""

    weight_bytes: int
    """Bytes of all tensors in the folder; of a config.json alone, those of all parameters in the config's dtype."""

    origin: str
    """A few words on where `weight_bytes` comes from."""

    quantisation: str = ""
    """How the weights are quantised, in a few words; empty for plain numbers."""

    def to_json(self) -> dict[str, Any]:
        """The document of the command."""
        parameters = self.spec.parameters()
        return {
            "model_type": self.spec.config["model_type"],
            "family": self.spec.family.name,
            "layers": self.spec.letters,
            "sizes": self.spec.sizes,
            "differing": self._differing(),
            "parameters": {
                "total": parameters.total,
                "active": parameters.active,
                "mtp": self.mtp,
                "by_component": parameters.by_component,
            },
            "extras": dict(self.extras),
            "weight_bytes": self.weight_bytes,
            "quantisation": self.quantisation or None,
        }

    def _differing(self) -> list[dict[str, Any]]:
        """Layers that differ from others of their kind, those that are alike together, and what config.json says of
        them that it does not say of the others."""
        spec, found = self.spec, []
        for kind in dict.fromkeys(spec.layers):
            alike = [other for other in spec.blocks.told if spec.base(other) == spec.base(kind)]
            if len(alike) > 1:
                keys = dict.fromkeys(key for other in alike for key in spec.blocks.told[other])
                own = {
                    key: spec.value(key, kind) for key in keys if len({str(spec.value(key, one)) for one in alike}) > 1
                }
                layers = [layer for layer, other in enumerate(spec.layers) if other == kind]
                found.append({"layers": layers, "kind": spec.base(kind), "config": own})
        return found


def inspect(model: Path, *, note: Note = no_note) -> Inspection:
    """What is in a checkpoint folder, what a config.json says, or what is on the hub, of which config and headers are
    fetched; reads no weights.  `note` is told what of a folder is passed over.

    Raises MinitronError where `model` is a folder whose safetensors headers do not fit its config.json."""
    from minitron.model.stored import with_headers

    spec, checkpoint, origin = _opened(model, note)
    parameters = spec.parameters()
    if checkpoint is not None:
        quantised = with_headers(spec, checkpoint)
        if quantised.quantisation is not None:
            return _quantised(quantised, checkpoint, origin)
        checkpoint.check(spec)
        # transformers drops the block when it saves a model, and its config.json goes on telling of it.
        extras: dict[str, int] = {}
        for name, extra in checkpoint.extras(spec).items():
            if not extra.counted:
                extras[extra.what] = extras.get(extra.what, 0) + checkpoint.headers[name].numel
        names = checkpoint.stored_names(spec)
        mtp = parameters.mtp if any(one.is_mtp and one.name in names for one in spec.expected()) else 0
        return Inspection(spec, mtp, extras, checkpoint.weight_bytes, origin)
    if spec.quantisation is not None:
        return _of_config(spec)
    dtype = stated_dtype(spec.stated) or "bfloat16"
    return Inspection(spec, parameters.mtp, {}, parameters.total * DTYPES[dtype], f"every parameter in {dtype}")


def _opened(model: Path, note: Note) -> tuple[ModelSpec, Checkpoint | None, str]:
    """(spec, headers of the weights, where they are); no headers of a config.json alone."""
    from minitron.files import read_json
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.hub import fetch_headers
    from minitron.model.sources import cached_weights, config_path, hub_name
    from minitron.model.spec import read_spec, spec_of
    from minitron.model.weight_files import notes

    folder, name = cached_weights(model), hub_name(model)
    if folder is not None:
        for told in notes(folder):
            note(told)
        return read_spec(model), Checkpoint(folder), "in the safetensors files"
    if name is None:
        return read_spec(model), None, ""
    config, headers = read_json(config_path(model)), fetch_headers(name)
    spec = spec_of(config, headers).as_loaded({tensor: header.file for tensor, header in headers.items()})
    checkpoint = Checkpoint(Path(str(name)), headers)
    checkpoint.name_by(spec)
    return spec, checkpoint, "in the safetensors files on the hub"


def _quantised(spec: ModelSpec, checkpoint: Checkpoint, origin: str) -> Inspection:
    """A quantised checkpoint, whose tensors hold other numbers than the model's."""
    assert spec.quantisation is not None and spec.source.measured is not None
    extras: dict[str, int] = {}
    for name, extra in checkpoint.extras(spec).items():
        extras[extra.what] = extras.get(extra.what, 0) + checkpoint.headers[name].numel
    has_mtp = any(one.is_mtp and one.name in spec.source.measured.bytes for one in spec.expected())
    mtp = spec.parameters().mtp if has_mtp else 0
    return Inspection(spec, mtp, extras, checkpoint.weight_bytes, origin, spec.quantisation.told)


def _of_config(spec: ModelSpec) -> Inspection:
    """A quantised model of which only the config is here."""
    from minitron.memory.formats import STORED
    from minitron.memory.precision import precision_of, tally_of, weight_bytes

    assert spec.quantisation is not None
    precision = precision_of(spec, STORED)
    size, _ = weight_bytes(spec, tally_of(spec, precision), spec.sizes)
    origin = f"{precision.mixture.origin}: {precision.mixture.source}"
    return Inspection(spec, spec.parameters().mtp, {}, int(size), origin, spec.quantisation.told)
