"""Preparation: what a run needs before its first step, a model in plain numbers and a held-out text."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from minitron.files import new_folder, write_text
from minitron.progress import Note, Progress
from pipeline.compression import CONFIG, DEQUANTISED, TEXT, Compression

if TYPE_CHECKING:
    from minitron.measure.records import Record

_HELD_OUT: Final = 0.05
"""The share of the training text that is held out, where no other text is given."""

_MANY: Final = 40
"""Records from which on they are held out whole: of fewer the last twentieth is none."""


def check(request: Compression, progress: Progress, note: Note) -> Compression:
    """The request with its model on this machine; raises MinitronError for a model or a text that cannot be read."""
    from judge.questions import read_questions
    from minitron.cut.companions import companions
    from minitron.measure.text import documents
    from minitron.model.sources import local_folder
    from minitron.model.spec import read_spec
    from minitron.model.stored import require_plain

    if not request.dequantise:
        require_plain(request.model)
    for path in {request.calibration_text, request.data, request.heldout or request.data}:
        next(documents(path))
    if request.searching.prompts is not None:
        read_questions(request.searching.prompts)
    request = replace(request, model=local_folder(request.model, progress, note))
    companions(request.model)
    if not request.dequantise:
        spec = read_spec(request.model)
        request.planning.format_choices(spec, request.planning.workload(spec))
    return request


def prepared(request: Compression, progress: Progress, note: Note) -> Compression:
    """The request with a model in plain numbers and a held-out text, which are made where they are not there.

    The run folder keeps the settings."""
    from minitron.model.loading import find_device, told_of_software

    # Before hours of scoring, and not only when training begins.
    if (slow := told_of_software(request.recipe.precision, find_device(request.device))) is not None:
        note(slow)
    if request.config:
        write_text(request.output / CONFIG, request.config)
    return _hold_out(_dequantised(request, progress))


def _dequantised(request: Compression, progress: Progress) -> Compression:
    """The request with the model in bf16: of a quantised one a copy in the run folder."""
    from pipeline.pruning import Pruning, prune

    if not request.dequantise:
        return request
    whole = request.output / DEQUANTISED
    if not whole.exists():
        prune(Pruning(request.model, whole, dequantise=True), progress=progress)
    return replace(request, model=whole)


def _hold_out(request: Compression) -> Compression:
    """The request with a held-out text: unless one is given the last twentieth of the training text, in files of the
    run folder."""
    from minitron.measure.text import documents

    if request.heldout is not None:
        return request
    folder = request.output / TEXT
    if not folder.exists():
        found = list(documents(request.data))
        if len(found) < _MANY and all(record.text is not None for record in found):
            name, parts = "{}.txt", _divided("\n\n".join(record.text or "" for record in found))
        else:
            name, parts = "{}.jsonl", _dealt(found)
        with new_folder(folder) as partial:
            for part, text in zip(("training", "heldout"), parts, strict=True):
                write_text(partial / name.format(part), text)
    training, heldout = (next(folder.glob(f"{part}.*")) for part in ("training", "heldout"))
    calibration = training if request.calibration_text == request.data else request.calibration
    return replace(request, data=training, calibration=calibration, heldout=heldout)


def _divided(whole: str) -> tuple[str, str]:
    """A text before and after the next paragraph, line or word behind the mark, whichever kind it has."""
    mark = int(len(whole) * (1 - _HELD_OUT))
    last = (mark + len(whole)) // 2
    cut = next((at for end in ("\n\n", "\n", " ") if (at := whole.find(end, mark, last)) >= 0), mark)
    return whole[:cut], whole[cut:]


def _dealt(found: list[Record]) -> tuple[str, str]:
    """Records as lines of .jsonl: those before the mark, and at least one behind it."""
    mark = sum(record.length for record in found) * (1 - _HELD_OUT)
    reached = list(accumulate(record.length for record in found))
    first = min(max(1, bisect_right(reached, mark)), len(found) - 1)
    lines = [json.dumps(record.row()) + "\n" for record in found]
    return "".join(lines[:first]), "".join(lines[first:])
