"""What stands beside the weights of a checkpoint folder, and goes with them: tokenizer, generation config, licence."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from minitron.errors import MinitronError
from minitron.files import refuse_pointer
from minitron.locks import resolved
from minitron.model.quantised.methods import COMPANIONS
from minitron.model.weight_files import SUFFIXES, names_in

RECORD: Final = "minitron.json"
"""The file in which a pruned folder says what was promised of it and what it was made from."""

DISTILLATION: Final = "distillation.json"
"""What a distilled folder holds of its training: `training` of minitron/report.schema.json."""

NOT_COPIED: Final = {
    "config.json": "written anew",
    "README.md": "written anew",
    RECORD: "of the parent",
    DISTILLATION: "of the parent",
    "*.index.json": "of the parent's shards",
    "*.index.*.json": "of the parent's shards",
    **{f"*{ending}": "code, which nothing here runs" for ending in (".py", ".pyc", ".so", ".sh", ".ipynb")},
    **{f"*{ending}": "a pickle, which runs code where it is opened" for ending in (".pkl", ".pickle", ".joblib")},
    "params.json": "the sizes of the parent, in its makers' format",
    "adapter_config.json": "of an adapter, whose weights are not copied",
    "trainer_state.json": "of the parent's training",
    **dict.fromkeys(COMPANIONS, "of the parent's quantisation"),
    **{f"*{suffix}": "weights" for suffix in SUFFIXES},
}
"""Names of files beside the weights that an output does not take over -> why; all others are copied."""


def companions(source: Path) -> list[Path]:
    """The files of a checkpoint folder that an output takes over as they are.

    Raises MinitronError for a link to a file outside the folder: a folder comes from elsewhere, and what it links to on
    this machine is not its own to pass on."""
    found = [source / name for name in names_in(source) if not _left_behind(name) and (source / name).is_file()]
    for file in (*found, source / "config.json", source / RECORD):
        require_own(file)
    for file in found:
        if file.suffix in (".json", ".model", ".txt", ".tiktoken"):
            refuse_pointer(file)
    return found


def _left_behind(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in NOT_COPIED)


def require_own(file: Path) -> None:
    """Raise MinitronError where a file of a folder is a link to one outside it; the hub's cache keeps what its
    snapshots hold in the folder `blobs` beside them."""
    folder, target = resolved(file.parent), resolved(file)
    places = [folder]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in places):
        raise MinitronError(
            f"{file} is a link to {target}, outside its folder, and is not followed; put the file itself there, or "
            "remove the link."
        )


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what `companions` finds."""
    for file in companions(source):
        copy_own(file, folder)


def copy_own(file: Path, folder: Path) -> None:
    """Copy one file, as `require_own` allows it."""
    require_own(file)
    # Not copy2, which carries over the mode: what is in the hub's cache is only to be read.
    shutil.copyfile(file, folder / file.name)
