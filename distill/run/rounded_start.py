"""Where a student in a format of fewer bits begins: scales that stay, and weights that round to what a rounding with
feedback chose.  It is made once and kept in the working folder of a run, for all processes and for runs that go on.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.run.checkpoints import STATE, flaw
from minitron.errors import MinitronError
from minitron.files import new_folder, write_sealed
from minitron.model.checkpoint import Checkpoint
from minitron.model.headers import Header, read_headers
from minitron.model.identity import file_hashes
from minitron.model.shards import Entry, ShardWriter
from minitron.model.slabs import read_rows
from minitron.model.spec import ModelSpec
from minitron.model.weight_files import SINGLE
from minitron.progress import Progress, silent
from minitron.quantise.assigned import Assigned, Matrix
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import Scales
from minitron.quantise.writing import Rounded, Rounding

_SCALES: Final = "scales.safetensors"
_STEP: Final = "|step"
_STORED: Final = "|stored"

_WHOLE: Final = 2**62
"""Bytes of a shard: all of the weights are in one."""


@dataclass(frozen=True)
class RoundedStart:
    """The beginning of every matrix of a student."""

    scales: Mapping[str, Scales]
    """Matrix's name in the student's folder -> its scales."""

    headers: Mapping[str, Header]
    """The same -> its weights in 16 bits, on the disk."""

    def weight(self, name: str) -> Tensor:
        """[R, C] bf16."""
        return read_rows(self.headers[name])

    @classmethod
    def read(cls, folder: Path) -> RoundedStart:
        """What `write_start` wrote; raises MinitronError where it is damaged."""
        if (found := flaw(folder)) is not None:
            raise MinitronError(f"{found}; put a copy of it back, or pass --overwrite to start again.")
        steps: dict[str, Tensor] = {}
        stored: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / _SCALES).items():
            name, _, rest = key.partition("|")
            if rest == _STEP.removeprefix("|"):
                steps[name] = tensor
            else:
                stored.setdefault(name, {})[f"|{rest}".removeprefix(_STORED)] = tensor
        scales = {name: Scales(step, stored[name]) for name, step in steps.items()}
        return cls(scales, read_headers(folder / SINGLE))


@torch.no_grad()
def write_start(
    folder: Path,
    student: Path,
    spec: ModelSpec,
    assigned: Assigned,
    rounding: Rounding,
    *,
    progress: Progress = silent,
) -> None:
    """Round the checkpoint `student` and keep in `folder`, complete or absent, where its training begins.

    A weight that goes to the number that was chosen for it stays as it is, near its neighbours or not; one that would
    go to another begins in the middle of the one that was chosen."""
    checkpoint = Checkpoint(student)
    with new_folder(folder, overwrite=True) as partial:
        entries = [Entry(matrix.name, "BF16", matrix.shape) for matrix in assigned.matrices]
        scales: dict[str, Tensor] = {}
        total = sum(checkpoint.headers[matrix.name].num_bytes for matrix in assigned.matrices)
        with (
            ShardWriter(partial, entries, shard_bytes=_WHOLE) as writer,
            progress("rounding the student", total, "B") as advance,
        ):
            for one in rounding.rounded(spec, checkpoint, assigned, advance):
                name = one.matrix.name
                writer.add(name, _begin(one, checkpoint.tensor(name)))
                scales |= dict(_kept(one.matrix, one.scales))
        save_file(scales, partial / _SCALES)
        files = sorted(partial.iterdir())
        sums = zip(files, file_hashes(files), strict=True)
        found: dict[str, Any] = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in sums}
        write_sealed(partial / STATE, {"files": found})


def _begin(one: Rounded, weight: Tensor) -> Tensor:
    """[R, C] bf16: what rounds to the numbers that were chosen."""
    chosen = off_grid(one.numbers, one.scales).bfloat16()
    own = weight.cpu().bfloat16()
    stays = on_grid(one.matrix.form, own, one.scales) == one.numbers
    return torch.where(stays, own, chosen)


def _kept(matrix: Matrix, scales: Scales) -> Iterator[tuple[str, Tensor]]:
    yield f"{matrix.name}{_STEP}", scales.step.contiguous()
    for suffix, tensor in scales.stored.items():
        yield f"{matrix.name}{_STORED}{suffix}", tensor.contiguous()
