"""Export: a checkpoint folder in, one GGUF file out, which llama.cpp loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron.errors import MinitronError
from minitron.files import new_file, refuse_existing, scratch
from minitron.gguf.conversion import PLAIN, converted, renamed, set_file_type
from minitron.gguf.extra import converter, quantise_rows
from minitron.gguf.staging import stage
from minitron.gguf.writing import typed, uncalibrated, write
from minitron.memory.ggml import mixture_of
from minitron.memory.gguf import facts_of, require_types
from minitron.memory.gguf_families import require_exportable
from minitron.model.checkpoint import Checkpoint
from minitron.model.dequantised import open_plain
from minitron.model.spec import ModelSpec
from minitron.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Importance = Callable[[ModelSpec, Checkpoint], Mapping[str, "NDArray[np.float32]"]]
"""Of a checkpoint in plain numbers: name of a linear's weight -> the mean of the squares of each input."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    tensors: int
    parameters: int
    weight_bytes: int
    """Of all tensors, without padding."""

    file_bytes: int
    types: Mapping[str, int]
    """ggml's type -> how many tensors have it."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return {**vars(self), "types": dict(self.types)}


def export(
    model: Path,
    output: Path,
    mixture: str = "bf16",
    *,
    overwrite: bool = False,
    importance: Importance | None = None,
    own_types: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write the checkpoint folder `model` to `output`, a GGUF file in a mixture of minitron.memory.ggml.MIXTURES.

    `importance` gives, of the checkpoint that is opened, the name of a linear's weight -> [C]: the mean of the squares
    of each input, of routed experts [E, C] under their name without a number; the types of about two bits need it.
    `own_types` is component -> the type of ggml that its matrices have instead.  Raises MinitronError, with nothing
    written, where llama.cpp could not load the model, a package is missing, or a type needs an importance that is not
    given."""
    chosen = mixture_of(mixture)
    refuse_existing(output, overwrite=overwrite, inputs=[model])
    converter()
    if mixture not in PLAIN or own_types:
        quantise_rows()
    spec, checkpoint, _ = open_plain(model)
    require_exportable(spec)
    require_types({rule.component for rules in spec.rules.values() for rule in rules}, own_types or {})
    checkpoint.check(spec)
    with new_file(output) as partial, scratch(output) as beside:
        staged = beside / "model"
        stage(model, spec, staged)
        header = converted(staged, model, spec, mixture)
        given = {} if importance is None else renamed(importance(spec, checkpoint), header, spec)
        facts = facts_of(spec, calibrated=bool(given))
        types = typed(header.tensors[0], chosen, facts, own_types)
        if lacking := uncalibrated(types, chosen, given):
            raise MinitronError(
                f"llama.cpp quantises to {mixture} with an importance matrix alone, and {lacking[0]} "
                f"({len(lacking)} in all) has none; give text with --data, from which it is computed, or choose a type "
                "that needs none, such as q4_k_m."
            )
        set_file_type(header, chosen.number)
        write(header, types, given, partial, progress)
        file_bytes = partial.stat().st_size
    return Exported(
        tensors=len(types),
        parameters=checkpoint.num_parameters,
        weight_bytes=sum(one.num_bytes for one in types),
        file_bytes=file_bytes,
        types=dict(Counter(one.type for one in types).most_common()),
    )
