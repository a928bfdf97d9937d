"""Evaluate: quality, size, speed and memory of checkpoints, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minitron.errors import MinitronError
from minitron.measure.options import EvaluationOptions
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from minitron.measure.evaluate import Evaluation


def evaluate(
    models: Sequence[Path],
    text: Path,
    options: EvaluationOptions | None = None,
    *,
    against: Path | None = None,
    device: str | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> list[Evaluation]:
    """Measure each of `models` on the held-out `text`; with a teacher `against` also the KL divergence from it.

    A script that calls this needs the usual `if __name__ == "__main__":` where speed is measured.  Raises MinitronError
    where a folder holds no such model, is named twice, the text is too short or a tokenizer is not the teacher's."""
    from minitron.measure.evaluate import evaluate_folders
    from minitron.model.loading import find_device, told_of_software
    from minitron.model.sources import local_folder
    from minitron.model.stored import quantisation_in, require_readable

    if len(set(models)) < len(models):
        raise MinitronError("A model is given twice; give each one once.")
    require_readable(*models, *([] if against is None else [against]))
    for model in dict.fromkeys([*models, *([] if against is None else [against])]):
        if (how := quantisation_in(model)) is not None:
            note(
                f"{model} is quantised ({how.told}): it is measured with its weights as bf16, and what its linears "
                "read is not rounded."
            )
    if (slow := told_of_software((options or EvaluationOptions()).dtype, find_device(device))) is not None:
        note(slow)
    folders = [local_folder(model, progress, note) for model in models]
    teacher = None if against is None else folders[models.index(against)] if against in models else None
    if against is not None and teacher is None:
        teacher = local_folder(against, progress, note)
    found = evaluate_folders(folders, text, options, against=teacher, device=device, progress=progress)
    return [replace(one, model=model) for one, model in zip(found, models, strict=True)]
