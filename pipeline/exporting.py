"""Export: a checkpoint as one GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError, require_least
from minitron.files import refuse_existing, sole
from minitron.memory.ggml import mixture_of
from minitron.model.sources import local_folder
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.gguf.export import Exported, Importance
    from minitron.measure.options import EvaluationOptions
    from minitron.measure.quality import Quality
    from minitron.model.spec import ModelSpec

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
        raise MinitronError("nothing says where the file is to go; give --output OUT.gguf.")
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


def export_planned(
    plan: Plan, spec: ModelSpec, request: Export, *, progress: Progress = silent, note: Note = no_note
) -> Exported:
    """Write the file of what is left of a model, whose spec is `spec`, in the types that its plan names; `request` says
    of what folder, where to, and by what text."""
    kind, keep = types_of_plan(plan, spec)
    return export(replace(request, type=kind, keep=keep), progress=progress, note=note)


def types_of_plan(plan: Plan, spec: ModelSpec) -> tuple[str, dict[str, str]]:
    """(type of the file, component -> its type) of a plan; bf16 where it names none."""
    from minitron.search.format_choices import types_written

    return types_written(plan.formats, plan.target(spec).parameters().by_component) or ("bf16", {})


def exported_quality(
    plan: Plan, spec: ModelSpec, request: Export, text: Path, options: EvaluationOptions, teacher: Path
) -> Quality:
    """How well the file of `export_planned` does on a text, its matrices rounded in memory as they are there; what
    is measured and how is that of minitron.measure.evaluate."""
    from importance.rounding.in_types import round_in_types
    from minitron.measure.quality import Teacher, measure_quality
    from minitron.measure.text import token_blocks
    from minitron.model.loading import DTYPES, find_device, load_model, load_tokenizer
    from minitron.model.spec import read_spec

    assert request.data is not None
    number, device = DTYPES[options.dtype], find_device(request.device)
    tokenizer, kind_keep = load_tokenizer(request.model), types_of_plan(plan, spec)
    by = token_blocks(tokenizer, request.data, sequence_length=request.sequence_length, samples=request.samples)
    blocks = token_blocks(tokenizer, text, sequence_length=options.sequence_length, samples=options.samples)
    model = load_model(request.model, dtype=number, device=device)
    round_in_types(model, read_spec(request.model), *kind_keep, by, batch_size=options.batch_size)
    return measure_quality(
        model, blocks, teacher=Teacher(load_model(teacher, dtype=number, device=device)), batch_size=options.batch_size
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
