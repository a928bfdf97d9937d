"""The working folder of a run: its inputs, settings and progress.

run.json                    models, text and recipe; a run goes on only where all of them are the same
start.json                  what was measured before the first step
tokens/0, 1, ...            the text of each source as token ids
metrics.jsonl               one line a step, one line a validation
checkpoints, best           see distill.run.checkpoints
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json, write_json, write_text

RUN: Final = "run.json"
START: Final = "start.json"
METRICS: Final = "metrics.jsonl"


class Work:
    """One run's folder on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, run: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin a run, or go on with the one that stopped here.

        Raises MinitronError where the folder is another run's (unless `overwrite`, which begins anew) or no run's."""
        if (self.folder / RUN).is_file():
            # Through JSON, so that tuples and lists are the same.
            begun, wanted = read_json(self.folder / RUN), json.loads(json.dumps(run))
            if begun == wanted:
                return
            if not overwrite:
                raise MinitronError(
                    f"{self.folder} holds a run with another {', '.join(_differences(begun, wanted))}; "
                    "use that of the run, or pass --overwrite to start again."
                )
            shutil.rmtree(self.folder)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise MinitronError(
                f"{self.folder} exists and is not the working folder of a distillation; move it or give another --work."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RUN, run)

    def close(self) -> None:
        """Remove the folder: the run is complete."""
        shutil.rmtree(self.folder)

    def read_start(self) -> dict[str, Any] | None:
        """What `write_start` wrote."""
        path = self.folder / START
        return dict(read_json(path)) if path.is_file() else None

    def write_start(self, start: Mapping[str, Any]) -> None:
        """Keep what was measured before the first step."""
        write_json(self.folder / START, dict(start))

    def append_metrics(self, **values: Any) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which will be written again, and a last line that was cut off by a kill."""
        path = self.folder / METRICS
        kept = (
            [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            if path.is_file()
            else []
        )
        write_text(path, "".join(f"{line}\n" for line in kept))

    @property
    def tokens(self) -> Path:
        """Where the text lies as tokens."""
        return self.folder / "tokens"


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return float("inf")


def _differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names of what differs, one level deep: `recipe.seed`."""
    names = []
    for key in sorted(begun.keys() | wanted.keys()):
        one, other = begun.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names += [f"{key}.{name}" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
        elif one != other:
            names.append(key)
    return names
