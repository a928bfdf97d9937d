"""Export: a checkpoint as one GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError, require_least
from minitron.files import refuse_existing, sole
from minitron.memory.ggml import mixture_of
from minitron.model.sources import local_folder
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from minitron.gguf.export import Exported, Importance

SAMPLES: Final = 128
SEQUENCE_LENGTH: Final = 512


@dataclass(frozen=True)
class Export:
    """A checkpoint, and the file that is written of it."""

    model: Path
    """The checkpoint to export."""

    output: Path | None = None
    """The GGUF file that is written; None to count its bytes from config.json alone."""

    type: str = "bf16"
    """Its type as llama.cpp calls it (minitron.memory.ggml.MIXTURES)."""

    keep: Mapping[str, str] = field(default_factory=dict)
    """Part of the model -> the type of ggml that its matrices have instead."""

    data: Path | None = None
    """Text from which an importance matrix is computed; None for none."""

    samples: int = SAMPLES
    """Sequences of it, at most."""

    sequence_length: int = SEQUENCE_LENGTH
    """Tokens of one of them."""

    device: str | None = None
    """Where the model is run on it, as torch spells it; None is the first GPU, or else the CPU."""

    overwrite: bool = False
    """Whether an output that exists is replaced."""

    def __post_init__(self) -> None:
        mixture_of(self.type)
        require_least(self, {"samples": 1, "sequence_length": 1})

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside the inputs, as JSON."""
        calibration = {"samples": self.samples, "sequence_length": self.sequence_length} if self.data else {}
        return {"type": self.type, **({"keep": dict(self.keep)} if self.keep else {}), **calibration}


def count(request: Export) -> int:
    """The bytes of all tensors that the file would hold, from config.json alone.

    Raises MinitronError for a model whose files were not measured against the count."""
    from minitron.memory.formats import gguf_format
    from minitron.memory.precision import precision_of, tally_of, weight_bytes
    from minitron.model.spec import read_spec

    spec = read_spec(request.model)
    return int(
        weight_bytes(spec, tally_of(spec, precision_of(spec, gguf_format(request.type), request.keep)), spec.sizes)[0]
    )


def export(request: Export, *, progress: Progress = silent, note: Note = no_note) -> Exported:
    """Write the file.  `note` is told what of the model's folder is passed over.

    Raises MinitronError, with nothing written, where llama.cpp could not load the model, the type needs what is not
    given, or the extra `gguf` is missing."""
    from minitron.gguf.export import export as write

    if request.output is None:
        raise MinitronError("nothing says where the file is to go; give --gguf OUT.gguf.")
    inputs = [path for path in (request.model, request.data) if path]
    with sole(request.output):
        refuse_existing(request.output, overwrite=request.overwrite, inputs=inputs)
        model = local_folder(request.model, progress, note)
        importance = None if request.data is None else _importance(request, model, progress, note)
        return write(
            *(model, request.output, request.type),
            overwrite=request.overwrite,
            importance=importance,
            own_types=request.keep,
            progress=progress,
        )


def _importance(request: Export, model: Path, progress: Progress, note: Note) -> Importance:
    """How large the inputs of linears are over the text of a request."""
    from importance.rounding.squares import input_squares
    from minitron.measure.text import token_blocks
    from minitron.model.loading import find_device, load_tokenizer, require_embeddings

    assert request.data is not None
    blocks = token_blocks(
        load_tokenizer(model), request.data, sequence_length=request.sequence_length, samples=request.samples
    )
    require_embeddings(model, blocks)
    if len(blocks) < request.samples:
        note(
            f"{request.data} holds {len(blocks):,} sequences of {request.sequence_length:,} tokens, not the "
            f"{request.samples:,} asked for."
        )
    device = find_device(request.device)
    return lambda spec, checkpoint: input_squares(model, spec, checkpoint, blocks, device, progress=progress)
