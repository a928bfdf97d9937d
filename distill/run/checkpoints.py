"""A run's checkpoints: every process writes its own part of the tensors, directly or in the background.

    checkpoints/step-00000100   safetensors files of torch.distributed.checkpoint; state.json: where the run stood
    best                        the same, of the weights alone, of the best validation that is not the last

A folder gets its name when all of its files are on the disk; state.json has the checksums of the others and its own.
Several machines must see the same folder.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial as partial_call
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from distill.processes import Processes
from minitron.errors import MinitronError
from minitron.files import new_folder, partial_of, read_sealed, remove, write_sealed
from minitron.model.headers import read_headers
from minitron.model.identity import file_hashes, first_changed
from minitron.progress import Note, no_note

STATE: Final = "state.json"
WEIGHTS: Final = "weights."
"""What the names of weights begin with."""

_AGAIN: Final = "put a copy of it back, or pass --overwrite to start again"

# The library takes a run of one process for a mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

_FILE_BYTES: Final = 2**28
"""Bytes of a file, of whole tensors: the library holds one in memory a second time while it writes it."""


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    written: Future[dict[str, Any]]
    """Done when the files of all processes are: name -> size and SHA-256, at the first process."""

    folder: ExitStack
    """Of the first process: gives the folder its name when it is closed well."""

    partial: Path
    """Where it is until then."""

    state: Mapping[str, Any]


class Checkpoints:
    """What a run can go on from."""

    def __init__(self, folder: Path, processes: Processes, *, keep: int = 2, behind: bool = False) -> None:
        """Of the newest in `folder`, `keep` stay.  With `behind` they are written from a copy in the CPU's memory while
        the run goes on; every process must make this object, and save at the same moments."""
        self.folder, self.keep, self.behind = folder, keep, behind
        self._processes, self._pending = processes, list[_Pending]()
        self._behind = ThreadPoolExecutor(1)
        # What is written behind the steps must not meet their own messages.
        self._group = torch.distributed.new_group(backend="gloo") if processes.world_size > 1 else None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, whole or not at all, and remove all but the newest.

        Raises what kept it or the one before from being written."""
        self._write(self._steps / f"step-{step:08d}", tensors, state, behind=self.behind)

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights of a validation that is better than those before it, instead of theirs."""
        self._write(self._best, tensors, {"step": step}, behind=False)

    def settle(self, *, wait: bool = True) -> None:
        """Give the one that is being written its name, once its files are there; raises what kept them from it.

        Unless told to `wait`, does nothing as long as they are not."""
        if not self._pending or not (wait or self._pending[0].written.done()):
            return
        pending = self._pending.pop()
        with pending.folder:
            files = pending.written.result()
            if self._processes.is_first:
                write_sealed(pending.partial / STATE, dict(pending.state) | {"files": files})
        if self._processes.is_first:
            for old in self._saved()[self.keep :]:
                remove(old)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; None where there is none."""
        return next((folder for folder in self._saved() if flaw(folder) is None), None)

    def sound(self, note: Note = no_note) -> Path | None:
        """The same, found by the first process for all, for a run that goes on; `note` is told of newer ones.

        Going on from an older one gives the same weights.  Raises MinitronError where checkpoints are there and all
        damaged, and where the weights of the best validation are."""
        saved, number = self._saved(), -1
        if self._processes.is_first:
            flaws = list[str]()
            for folder in saved:
                if (found := flaw(folder)) is None:
                    number = len(flaws)
                    break
                flaws.append(found)
            if saved and number < 0:
                raise MinitronError(f"{flaws[0]}, and no other checkpoint is whole; {_AGAIN}.")
            if self._best.exists() and (found := flaw(self._best)) is not None:
                raise MinitronError(f"{found}; {_AGAIN}.")
            for found in flaws:
                note(f"{found}; resuming from {saved[number].name}.")
        if self._group is not None:
            agreed = torch.tensor(number)
            torch.distributed.broadcast(agreed, 0, group=self._group)
            number = int(agreed)
        return None if number < 0 else saved[number]

    def restore(self, folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the checkpoint `folder` into `tensors`, each process its part of them, however many wrote it; returns
        the state."""
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(tensors), storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        return read_sealed(folder / STATE)

    def best_weights(self, step: int) -> dict[str, Tensor]:
        """What `save_best` kept of `step`, whole, by the names of parameters."""
        if (found := flaw(self._best)) is not None:
            raise MinitronError(f"{found}; {_AGAIN}.")
        if read_sealed(self._best / STATE)["step"] != step:
            raise RuntimeError(f"{self._best} does not hold step {step}")
        return read_weights(self._best)

    def _write(self, folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, behind: bool) -> None:
        self.settle()
        named, stack = {name: tensor.detach() for name, tensor in tensors.items()}, ExitStack()
        with stack:
            if self._processes.is_first:
                stack.enter_context(new_folder(folder, overwrite=True))
            partial = self._agreed(folder)
            writer = HuggingFaceStorageWriter(str(partial), _files(named), save_distributed=True)
            how: dict[str, Any] = {"process_group": self._group, "no_dist": self._group is None}
            # Files are read once more for their checksums, behind the steps as well.
            place = partial if self._processes.is_first else None
            if behind:
                asked = async_save(named, storage_writer=writer, **how)
                assert isinstance(asked, Future)  # as long as the copy is made before it returns
                written = self._behind.submit(_sums, asked.result, place)
            else:
                written = Future()
                written.set_result(_sums(partial_call(save, named, storage_writer=writer, **how), place))
            self._pending.append(_Pending(written, stack.pop_all(), partial, state))
        self.settle(wait=not behind)

    def _agreed(self, folder: Path) -> Path:
        """What the first process calls `folder` until it is whole, for all of them."""
        number = torch.tensor(os.getpid())
        if self._group is not None:
            torch.distributed.broadcast(number, 0, group=self._group)
        return partial_of(folder.resolve(), int(number))

    @property
    def _best(self) -> Path:
        return self.folder / "best"

    @property
    def _steps(self) -> Path:
        return self.folder / "checkpoints"

    def _saved(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self._steps.glob("step-*") if path.is_dir()), reverse=True)


def names_of(folder: Path) -> set[str]:
    """The tensors of a checkpoint."""
    return {name for path in folder.glob("*.safetensors") for name in read_headers(path)}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights, whole and on the CPU, by the names of parameters; one process may ask alone."""
    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(WEIGHTS) and isinstance(kept, TensorStorageMetadata)
    }
    load(dict(found), storage_reader=reader, no_dist=True)
    return {name.removeprefix(WEIGHTS): tensor for name, tensor in found.items()}


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> number of its file, from 1."""
    numbers, size = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = size // _FILE_BYTES + 1
        size += tensor.numel() * tensor.element_size()
    # None is skipped, though a large tensor may reach over several.
    order = {number: place for place, number in enumerate(dict.fromkeys(numbers.values()), 1)}
    return {name: order[number] for name, number in numbers.items()}


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as the beginning of a sentence; None where every bit is as it was written."""
    try:
        files = read_sealed(folder / STATE).get("files", {})
        paths = [folder / name for name in files]
        for path in paths:
            if path.stat().st_size != files[path.name]["bytes"]:
                return f"{path} is damaged (its size differs)"
        if (changed := first_changed({path: files[path.name]["sha256"] for path in paths})) is not None:
            return f"{changed} is damaged (its checksum differs)"
        return None if files else f"{folder} is empty"
    except (MinitronError, OSError, LookupError, TypeError, AttributeError):
        return f"{folder} is damaged ({STATE} or a file that it names cannot be read)"


def _sums(write: Callable[[], Any], folder: Path | None) -> dict[str, Any]:
    """Write, and return name -> size and SHA-256 of the files in `folder`; raises the failure of the first process that
    had one as it was there."""
    try:
        write()
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
    paths = [] if folder is None else sorted(folder.iterdir())
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, file_hashes(paths), strict=True)
    }
