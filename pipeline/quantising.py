"""Quantise: a checkpoint in 16 bits in, one in fewer out, in a layout that engines read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from minitron.errors import require_known, require_least
from minitron.files import refuse_existing, scratch, sole
from minitron.progress import Note, Progress, no_note, silent
from minitron.quantise.wanted import Wanted, Way

if TYPE_CHECKING:
    from minitron.quantise.writing import Quantised, Rounding

SAMPLES: Final = 128
SEQUENCE_LENGTH: Final = 512


@dataclass(frozen=True)
class Quantising:
    """A checkpoint, and what it is to be kept in."""

    model: Path
    """The checkpoint, in plain numbers."""

    output: Path
    """The folder that is written."""

    form: str
    """A name in minitron.memory.formats.FORMATS that is written."""

    keep: Mapping[str, str] = field(default_factory=dict)
    """Component -> another format, bf16 among them."""

    kv: str = "bf16"
    """bf16, or fp8: the files then hold scales by which an engine keeps keys and values so."""

    rounding: Way = "best"
    """How numbers are rounded."""

    data: Path | None = None
    """Calibration text."""

    samples: int = SAMPLES
    """Sequences of it, at most."""

    sequence_length: int = SEQUENCE_LENGTH
    """Tokens of one of them."""

    device: str | None = None
    """Where the model is run on it, as torch spells it; None is the first GPU, or else the CPU."""

    overwrite: bool = False
    """Whether an output that exists is replaced."""

    def __post_init__(self) -> None:
        require_least(self, {"samples": 1, "sequence_length": 1})
        require_known(self, {"rounding": get_args(Way)})
        _ = self.wanted

    @property
    def wanted(self) -> Wanted:
        """Formats alone; raises MinitronError for what is not written."""
        return Wanted(self.form, self.keep, self.kv)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside the inputs, as JSON."""
        calibration = {"samples": self.samples, "sequence_length": self.sequence_length} if self.data else {}
        return {
            "format": self.form,
            "keep": dict(self.keep),
            "kv": self.kv,
            "round": self.rounding,
            **calibration,
        }


def quantise(request: Quantising, *, progress: Progress = silent, note: Note = no_note) -> Quantised:
    """Write the checkpoint in fewer bits.  `note` is told what of its folder is passed over and what stays in 16 bits.

    Raises MinitronError, with nothing written, where the checkpoint is not understood whole, quantised already or not
    finite, cannot be kept so, or the output exists."""
    from minitron.cut.companions import companions
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_plain
    from minitron.quantise.writing import quantise as write

    inputs = [path for path in (request.model, request.data) if path]
    with sole(request.output):
        refuse_existing(request.output, overwrite=request.overwrite, inputs=inputs)
        require_plain(request.model)
        folder = local_folder(request.model, progress, note)
        companions(folder)
        with scratch(request.output) as states:
            result = write(
                folder,
                request.output,
                request.wanted,
                _rounding(request, folder, states, note),
                overwrite=request.overwrite,
                progress=progress,
            )
    for name, why in list(result.left.items())[:_NAMED]:
        note(f"{name} stays in 16 bits: {why}.")
    if len(result.left) > _NAMED:
        note(f"{len(result.left) - _NAMED:,} more stay in 16 bits; {request.output / 'minitron.json'} names them.")
    return result


_NAMED: Final = 3
"""Matrices of one kind of trouble that are named one by one."""


def _rounding(request: Quantising, folder: Path, states: Path, note: Note) -> Rounding:
    """How numbers come to their grids; says so where better can be had."""
    from minitron.quantise.writing import Nearest

    best = request.rounding == "best"
    if request.data is None:
        if best:
            note("without --data every number goes to the nearest, with scales of the least squared error.")
        return Nearest(search=best)
    from importance.rounding.calibrated import Calibrated
    from minitron.measure.text import require_known, token_blocks
    from minitron.model.loading import find_device, load_tokenizer, require_embeddings

    tokenizer = load_tokenizer(folder)
    blocks = token_blocks(tokenizer, request.data, sequence_length=request.sequence_length, samples=request.samples)
    require_embeddings(folder, blocks)
    require_known(tokenizer, blocks, request.data)
    if len(blocks) < request.samples:
        note(
            f"{request.data} holds {len(blocks):,} sequences of {request.sequence_length:,} tokens, not the "
            f"{request.samples:,} asked for."
        )
    return Calibrated(folder, blocks, find_device(request.device), feedback=best, states=states)
