"""The names of a checkpoint's tensors, without the checks of those who read them (minitron.model.checkpoint)."""

import json
import struct
from pathlib import Path
from typing import Final

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"


def tensor_names(folder: Path) -> frozenset[str]:
    """The names of the tensors in `folder`; none where it holds no weights or a file that does not parse, for which
    reading the checkpoint has the message."""
    try:
        if (folder / INDEX).is_file():
            found = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map")
        elif (folder / SINGLE).is_file():
            found = _header(folder / SINGLE)
        else:
            found = None
    except (ValueError, AttributeError, struct.error):
        return frozenset()
    return frozenset(found) if isinstance(found, dict) else frozenset()


def _header(file: Path) -> object:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(min(length, file.stat().st_size)))
