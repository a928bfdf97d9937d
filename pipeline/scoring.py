"""Score: the importance of every part of a model, from calibration text."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from importance.score.options import ScoringOptions
from minitron.files import refuse_existing, sole
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from minitron.cut.scores import Scores


def score(
    model: Path,
    data: Path,
    options: ScoringOptions | None = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> Scores:
    """The scores of `model` on the text `data`, written to the file `output` where one is given.

    `note` is called if the text is shorter than asked for, for what is passed over in the folder, for numbers that the
    CPU is slow with, and at the end with what each part took.
    Raises MinitronError where the output exists, unless it may be overwritten, and for what cannot be scored."""
    from importance.score.calibrate import calibrate
    from minitron.model.loading import find_device, told_of_software
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_plain

    asked = options or ScoringOptions()
    with nullcontext() if output is None else sole(output):
        if output is not None:
            refuse_existing(output, overwrite=overwrite, inputs=[model, data])
        require_plain(model)
        folder = local_folder(model, progress, note)
        if (slow := told_of_software(asked.dtype, find_device(device))) is not None:
            note(slow)
        scores = calibrate(folder, data, asked, output=output, device=device, progress=progress)
        if output is not None:
            scores.save(output, overwrite=overwrite)
    found, length = scores.settings["samples"], asked.sequence_length
    if found < asked.samples:
        note(f"{data} holds {found:,} sequences of {length:,} tokens, not the {asked.samples:,} asked for.")
    told = ", ".join(f"{name} {part['seconds']:.1f} s ({part['share']:.0%})" for name, part in costs(scores).items())
    note(f"Scoring took {scores.settings['seconds']:.1f} s: {told}.")
    return scores


def costs(scores: Scores) -> dict[str, dict[str, float]]:
    """Part of scoring -> the `seconds` that it took and its `share` of all of them, in the order in which parts began;
    `the rest` is reading the model and the text."""
    from importance.score.clock import PARTS

    whole, parts = float(scores.settings["seconds"]), dict(scores.settings[PARTS])
    parts["the rest"] = max(whole - sum(parts.values()), 0.0)
    return {name: {"seconds": round(taken, 3), "share": taken / max(whole, 1e-9)} for name, taken in parts.items()}
