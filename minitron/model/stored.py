"""Quantised checkpoints as their folders hold them: which stored tensor belongs to which of the model's, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.model.axes import EXPERT
from minitron.model.checkpoint import Checkpoint
from minitron.model.dtypes import DTYPE_KEYS
from minitron.model.headers import stored_headers
from minitron.model.quantised.methods import as_cast, quantisation_of, with_companions
from minitron.model.quantised.quantisation import Quantisation, plain_config
from minitron.model.quantised.source import ORIGINAL, Measured, Source
from minitron.model.sources import config_path, hub_name
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.weight_files import first_file, names_in

CAST_DTYPES: Final = ("F8_E4M3", "F8_E5M2")
"""Floats of eight bits, as safetensors spells them."""

NARROW: Final = (*CAST_DTYPES, "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
"""The dtypes that only quantised checkpoints have."""

UNDO: Final = "write it in bf16 with `minitron prune {} --dequantise -o OUTPUT` first, or "


def quantisation_in(folder: Path) -> Quantisation | None:
    """How a checkpoint folder is quantised, by its config.json, the files beside it and the headers; None where it is
    in plain numbers.  Of a name on the hub the config alone is asked.  Raises MinitronError where weights are
    missing."""
    local = folder.expanduser()
    if not local.exists() and hub_name(folder) is None:
        return None  # who reads it says what is missing
    path = local / "config.json" if local.is_dir() else config_path(folder)
    config = read_json(path) if path.is_file() else {}
    found = quantisation_of(with_companions(config, path)) if isinstance(config, dict) else None
    if found is not None:
        return found
    if not local.is_dir():
        return None
    narrow = any(header.dtype in NARROW for header in stored_headers(local).values())
    return quantisation_of(as_cast({})) if narrow else None


def plain(spec: ModelSpec) -> ModelSpec:
    """The spec of the same model in bf16."""
    config = plain_config(spec.config)
    config |= {key: "bfloat16" for key in DTYPE_KEYS if config.get(key)}
    return replace(spec, config=config, source=ORIGINAL)


def require_plain(*folders: Path) -> None:
    """Raise MinitronError where a checkpoint is quantised: what reads weights needs them in plain numbers."""
    for folder in folders:
        found = quantisation_in(folder)
        if found is not None:
            undo = UNDO.format(folder) if found.can_be_undone else ""
            raise MinitronError(
                f"{folder} is quantised ({found.told}); {undo}give the checkpoint it was quantised from."
            )


def require_readable(*folders: Path) -> None:
    """Raise MinitronError where a checkpoint is quantised in a way that cannot be undone as it is read."""
    for folder in folders:
        found = quantisation_in(folder)
        if found is not None and not found.can_be_undone:
            require_plain(folder)


def read_stored_spec(model: Path) -> ModelSpec:
    """The spec of a config.json or of a folder; of a quantised folder with weights, with what its files hold.

    Reads headers, and no weight.  Where those cannot be read the config alone speaks."""
    spec = read_spec(model)
    if first_file(names_in(model)) is None:
        return spec
    try:
        checkpoint = Checkpoint(model)
        return with_headers(spec, checkpoint)
    except MinitronError:
        return spec


def with_headers(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a quantised checkpoint with what its files hold; any other as it is.

    Raises MinitronError where a tensor of the model is not there in any form."""
    if spec.quantisation is None:
        if not any(header.dtype in CAST_DTYPES for header in checkpoint.headers.values()):
            return spec
        spec = replace(spec, config=as_cast(spec.config))
    own = {name: header for name, header in checkpoint.headers.items() if spec.extra(name) is None}
    found: dict[str, int] = {}
    for name, owner in owners(spec, own):
        if owner:
            found[owner] = found.get(owner, 0) + own[name].num_bytes
    measured = Measured(spec, found, sum(header.num_bytes for header in own.values()))
    return replace(spec, source=Source(measured=measured))


def owners(spec: ModelSpec, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(stored name, the model's tensor that it belongs to in the family's first dialect, or "") of every name.

    What belongs to a matrix has its name, or the name of its module, with something behind: `weight_scale`, `qweight`,
    `_blocks`.  Raises MinitronError where a tensor of the model is not there in any form."""
    known: dict[str, str] = {}
    expected = list(spec.expected())
    for one in expected:
        for name in one.rule.pattern.dialects(one.index):
            known[name] = one.name
            known.setdefault(name.removesuffix(".weight"), one.name)
    missing = {one.name for one in expected if not one.is_mtp}
    for name in names:
        owner = _owner(name, known)
        missing.discard(owner)
        yield name, owner
    if missing:
        first = min(missing, key=lambda name: (name.count(f".{EXPERT}"), name))
        raise MinitronError(f"{len(missing)} tensors are missing, the first {first}; copy the checkpoint again.")


def _owner(name: str, known: dict[str, str]) -> str:
    while name:
        if name in known:
            return known[name]
        name = name[: max(name.rfind("."), name.rfind("_"), 0)]
    return ""
