"""The working folder of a run: its inputs, settings and progress.

run.json                    models, text and recipe; a run goes on only where all of them are the same
start.json                  what was measured before the first step
range_test.json             the trials of a learning rate that is to be found (distill.run.range_test)
tokens/0, 1, ...            the text of each source as token ids
metrics.jsonl               one line a step, one line a validation
rounded                     see distill.run.rounded_start
checkpoints, best           see distill.run.checkpoints
written.json                which output folders are this run's, before they get their names

All but metrics.jsonl, of which no weight depends, carries checksums.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from minitron.files import read_sealed, remove, write_sealed, write_text
from minitron.locks import resolved
from minitron.run_folder import Begun, RunFolder

RUN: Final = "run.json"
START: Final = "start.json"
RANGE_TEST: Final = "range_test.json"
METRICS: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"
WRITTEN: Final = "written.json"
ROUNDED: Final = "rounded"
STAGES: Final = "stages.json"
"""Of a run of several stages, instead of RUN."""

_NAMES: Final = (RUN, START, RANGE_TEST, METRICS, "tokens", CHECKPOINTS, "best", WRITTEN, STAGES, ROUNDED, "stage-*")


def run_folder(folder: Path, record: str) -> RunFolder:
    """A working folder whose record has that name."""
    return RunFolder(folder, record, "the working folder of a distillation", _NAMES)


class Work:
    """One run's folder on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = resolved(folder)
        self._run = run_folder(self.folder, RUN)

    def open(
        self, asked: Callable[[Begun], Mapping[str, Any]], *, overwrite: bool, inputs: tuple[Path, ...] = ()
    ) -> None:
        """Begin a run, or go on with the one that stopped here (minitron.run_folder.RunFolder.open).

        Raises MinitronError where the folder is another run's that has saved a step (unless `overwrite`, which begins
        anew) or no run's."""
        saved = any((self.folder / CHECKPOINTS).glob("step-*"))
        self._run.open(asked, overwrite=overwrite or not saved, inputs=inputs)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Where an error ends the block before anything was measured, the folder is gone: whatever is asked for next
        can begin.  What was interrupted stays."""
        with ExitStack() as stack:

            @stack.push
            def gone(kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
                if kind is not None and issubclass(kind, Exception) and not (self.folder / START).is_file():
                    self.close()
                return False

            yield

    def has_written(self, output: Path) -> bool:
        """Whether the folder `output` is what this run wrote, and not one that stood there before."""
        output = resolved(output)
        path = self.folder / WRITTEN
        return output.is_dir() and path.is_file() and read_sealed(path).get(output.name) == _known(output)

    def write_written(self, partial: Path, output: Path) -> None:
        """Keep that `partial`, which is whole, is what becomes `output` next."""
        path = self.folder / WRITTEN
        before = read_sealed(path) if path.is_file() else {}
        write_sealed(path, before | {resolved(output).name: _known(partial)})

    @property
    def has_begun(self) -> bool:
        """Whether `open` has written here."""
        return (self.folder / RUN).is_file()

    @property
    def run(self) -> dict[str, Any]:
        """What `open` wrote or found."""
        return read_sealed(self.folder / RUN)

    def close(self) -> None:
        """Remove the folder: the run is complete."""
        remove(self.folder)

    def read_start(self) -> dict[str, Any] | None:
        """What `write_start` wrote."""
        path = self.folder / START
        return read_sealed(path) if path.is_file() else None

    def write_start(self, start: Mapping[str, Any]) -> None:
        """Keep what was measured before the first step."""
        write_sealed(self.folder / START, start)

    def read_range_test(self) -> dict[str, Any] | None:
        """What `write_range_test` wrote."""
        path = self.folder / RANGE_TEST
        return read_sealed(path) if path.is_file() else None

    def write_range_test(self, told: Mapping[str, Any]) -> None:
        """Keep the trials that are done."""
        write_sealed(self.folder / RANGE_TEST, told)

    def append_metrics(self, **values: Any) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which will be written again, and a last line that was cut off by a kill."""
        path = self.folder / METRICS
        # Of a line that is damaged nothing depends: it goes.
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        kept = [line for line in text.splitlines() if _step_of(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))

    @property
    def rounded(self) -> Path:
        """Where a student in fewer bits begins."""
        return self.folder / ROUNDED

    @property
    def tokens(self) -> Path:
        """Where the text lies as tokens."""
        return self.folder / "tokens"


def _known(folder: Path) -> list[int]:
    """What a folder keeps when it is renamed, and no other folder has."""
    found = folder.stat()
    return [found.st_dev, found.st_ino, found.st_mtime_ns]


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return float("inf")
