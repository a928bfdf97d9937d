"""MODEL as it was typed: a checkpoint folder, a config.json, or a name on the hub; and where it is on this machine.

A path that exists is that path, whatever else it could be.  Nothing is fetched but for a name on the hub.
"""

from __future__ import annotations

from pathlib import Path

from minitron.errors import MinitronError
from minitron.locks import resolved
from minitron.model.hub import HubName, fetch_config, fetch_model, parse_name
from minitron.model.weight_files import cached_name, is_complete, notes, what_it_is
from minitron.progress import Note, Progress, no_note, silent


def hub_name(model: Path) -> HubName | None:
    """The name on the hub that MODEL is; None for a path."""
    return None if model.expanduser().exists() else parse_name(model.as_posix())


def config_path(model: Path) -> Path:
    """The config.json of MODEL; of a name on the hub it is fetched, and nothing else."""
    local = model.expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise MinitronError(f"{model} holds no config.json{what_it_is(local)}.")
        return local / "config.json"
    if local.is_file():
        return local
    name = hub_name(model)
    if name is None:
        raise MinitronError(
            f"{model} does not exist; give a checkpoint folder, a config.json or a name on the hub such as org/model."
        )
    return fetch_config(name)


def local_folder(model: Path, progress: Progress = silent, note: Note = no_note) -> Path:
    """The folder of MODEL with its weights; of a name on the hub they are fetched.

    `note` is told what of a folder is passed over, such as a second set of weights."""
    name = hub_name(model)
    folder = model.expanduser() if name is None else fetch_model(name, progress)
    for told in notes(folder) if folder.is_dir() else ():
        note(told)
    return folder


def cached_weights(model: Path) -> Path | None:
    """The folder of MODEL where its weights are on this machine: a folder, or a snapshot in the cache of a name that is
    complete."""
    local = model.expanduser()
    if hub_name(model) is None:
        return local if local.is_dir() else None
    folder = config_path(model).parent
    return folder if is_complete(folder) else None


def title(model: Path) -> str:
    """What a model is called: by its folder, or by its name on the hub, also where its folder is one of the cache."""
    if (name := hub_name(model)) is not None:
        return name.repo.rpartition("/")[2]
    if model.name == "config.json":
        model = model.parent
    place = resolved(model.expanduser())
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        return cached_name(place.parent.parent).rpartition("/")[2]
    return place.name.removesuffix(".json")
