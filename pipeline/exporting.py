"""Export: a checkpoint as one GGUF file for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minitron.errors import MinitronError
from minitron.files import refuse_existing, sole
from minitron.memory.ggml import mixture_of
from minitron.model.sources import local_folder
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from minitron.gguf.export import Exported


@dataclass(frozen=True)
class Export:
    """A checkpoint, and the file that is written of it."""

    model: Path
    """The checkpoint to export."""

    output: Path | None = None
    """The GGUF file that is written; None to count its bytes from config.json alone."""

    type: str = "bf16"
    """Its type as llama.cpp calls it (minitron.memory.ggml.MIXTURES)."""

    overwrite: bool = False
    """Whether an output that exists is replaced."""

    def __post_init__(self) -> None:
        mixture_of(self.type)


def count(request: Export) -> int:
    """The bytes of all tensors that the file would hold, from config.json alone.

    Raises MinitronError for a model whose files were not measured against the count."""
    from minitron.memory.formats import gguf_format
    from minitron.memory.precision import precision_of, tally_of, weight_bytes
    from minitron.model.spec import read_spec

    spec = read_spec(request.model)
    return int(weight_bytes(spec, tally_of(spec, precision_of(spec, gguf_format(request.type))), spec.sizes)[0])


def export(request: Export, *, progress: Progress = silent, note: Note = no_note) -> Exported:
    """Write the file.  `note` is told what of the model's folder is passed over.

    Raises MinitronError, with nothing written, where llama.cpp could not load the model, the type needs what is not
    given, or the extra `gguf` is missing."""
    from minitron.gguf.export import export as write

    if request.output is None:
        raise MinitronError("nothing says where the file is to go; give --gguf OUT.gguf.")
    with sole(request.output):
        refuse_existing(request.output, overwrite=request.overwrite, inputs=[request.model])
        model = local_folder(request.model, progress, note)
        return write(model, request.output, request.type, overwrite=request.overwrite, progress=progress)
