"""MODEL as it was typed: a checkpoint folder, a config.json, or a name on the hub; and where it is on this machine."""

from __future__ import annotations

from pathlib import Path

from minitron.errors import MinitronError
from minitron.model.weight_files import what_it_is


def config_path(model: Path) -> Path:
    """The config.json of MODEL, which is a checkpoint folder or the file itself."""
    model = model.expanduser()
    if model.is_dir():
        if not (model / "config.json").is_file():
            raise MinitronError(f"{model} holds no config.json{what_it_is(model)}.")
        model = model / "config.json"
    if not model.is_file():
        raise MinitronError(f"{model} does not exist; give a checkpoint folder or a config.json.")
    return model
