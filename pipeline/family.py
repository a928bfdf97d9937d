"""A family: models of several budgets from one scoring, one after the other.

The run folder holds what all share, the scores, the texts and every measurement of candidates, and a run folder of its
own for each budget.  The curves of axes and the random combinations are measured once; each budget adds its own best
candidates.  A stopped run goes on with what is not done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minitron.files import sole
from minitron.progress import Note, Progress, no_note, silent
from pipeline.artefacts import missing, require_sound
from pipeline.chain import Compressed, compress, open_run
from pipeline.compression import DEQUANTISED, SCORES, TEXT, TRIALS, Compression, Shared
from pipeline.preparation import check, prepared
from pipeline.steps import score

NAMES: Final = ("run.*", DEQUANTISED, SCORES, TEXT, TRIALS, "budget-*", "params-*")
"""What a family leaves in its folder."""


@dataclass(frozen=True)
class Family:
    """What a run left in its folder."""

    output: Path

    members: Mapping[str, Compressed]
    """Name of a member's folder -> what is in it."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return {"members": {name: member.to_json() for name, member in self.members.items()}}


def compress_family(
    request: Compression, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note
) -> Family:
    """Compress a model to each of several budgets (Compression.budgets or .params); the most roomy first.

    Raises MinitronError as `compress` does."""
    for planning in request.plannings.values():
        planning.require_limits()
    request = check(request, progress, note)
    with sole(request.output):
        run, record = open_run(request, NAMES, overwrite=overwrite)
        require_sound(request.output, record)
        request = prepared(request, progress, note)

        def keep(*artefacts: str) -> None:
            if missing(request.output, artefacts, record):
                run.write(record)

        keep(DEQUANTISED, TEXT)
        if not (request.output / SCORES).exists():
            note("scores for all budgets")
            score(request, progress)
        keep(SCORES)
        plannings = request.plannings
        names = sorted(plannings, key=lambda name: -int(name.rpartition("-")[2]))
        shared = Shared(request.output / TRIALS, tuple(plannings[name] for name in names))
        found = {}
        for number, name in enumerate(names, 1):
            note(f"[{number}/{len(names)}] {name}")
            member = replace(
                request,
                output=request.output / name,
                planning=plannings[name],
                budgets=(),
                params=(),
                scores=request.output / SCORES,
                dequantise=False,
                config="",
                shared=shared,
            )
            found[name] = compress(member, progress=progress, note=note)
        return Family(request.output, found)
