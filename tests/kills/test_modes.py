"""Every file and folder that a command writes has the mode that the user's umask gives it."""

import os
from pathlib import Path

from kills.campaign import Campaign, Kill
from kills.commands import prepare

COMMANDS = ["plan -o FOLDER", "plan -o FILE", "score", "prune", "distill --cache-teacher", "compress"]


def modes(folder: Path) -> set[tuple[bool, str]]:
    """(whether it is a folder, its mode) of all that is below `folder`."""
    return {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in folder.rglob("*")}


def test_what_is_written_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        campaign = Campaign(tmp_path, ["distill"])
        sandbox = campaign.inputs.sandbox
        for name in COMMANDS:
            prepare(name, campaign.inputs)
            assert campaign.run(name) == 0
            assert modes(sandbox) <= {(False, "0o640"), (True, "0o750")}, name
        # What a run keeps until it is done: killed when it is about to remove its working folder.
        changes = campaign.changes["distill"]
        number = next(i for i, change in enumerate(changes) if change == "os.rename out.work")
        prepare("distill", campaign.inputs)
        campaign.run("distill", kill=Kill("distill", number, False, changes[number]))
        assert (sandbox / "out.work/checkpoints").is_dir()
        assert modes(sandbox) == {(False, "0o640"), (True, "0o750")}
    finally:
        os.umask(before)
