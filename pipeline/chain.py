"""The chain of `compress` and `demo`: score, plan, prune, distill, evaluate. Each step writes one artefact of a folder.

An artefact is complete or absent, so a step is done when its artefact exists, and a killed run resumes with the first
step that is not done.  run.json holds the request, and what came of every step: it is written when an artefact is whole
and has not got its name yet, so that one rename makes both true.  A run is not resumed with another request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.files import is_leftover, read_json, remove, sole
from minitron.model.identity import tokenizer_hash, weights_of
from minitron.progress import Note, Progress, no_note, silent
from minitron.run_folder import Begun, RunFolder, part
from pipeline.artefacts import missing, require_sound
from pipeline.compression import (
    DEQUANTISED,
    DISTILLED,
    EVALUATION,
    GGUF,
    JUDGED,
    PLAN,
    PRUNED,
    REPORT,
    RUN,
    SCORES,
    SEARCH,
    TEXT,
    TRIALS,
    Compression,
)
from pipeline.finalists import FOLDER as FINALISTS
from pipeline.plan_document import serve_line_for
from pipeline.preparation import check, prepared
from pipeline.several_cuts import FOLDER, cuts_of, earlier_cut, last_cut, left_by_search
from pipeline.steps import EXPORT, STEPS

if TYPE_CHECKING:
    from pipeline.planning import Planning

_NAMES: Final = (
    *("run.*", DEQUANTISED, SCORES, PLAN, "plan.*", PRUNED, f"{DISTILLED}*", GGUF, EVALUATION, TEXT, TRIALS),
    *(SEARCH, REPORT, FINALISTS, JUDGED, "depth*", f"{FOLDER}*"),
)
"""What a run leaves in its folder."""


@dataclass(frozen=True)
class Compressed:
    """What a run left in its folder."""

    output: Path
    """The run folder."""

    steps: Mapping[str, Mapping[str, Any]]
    """Step -> {"seconds", "results"}."""

    models: Mapping[str, Mapping[str, Any]]
    """teacher, pruned and distilled -> what was measured of it (minitron.measure.evaluate.Evaluation.to_json)."""

    serve: str = ""
    """The command that serves the compressed model with the engine that was planned for; empty for none."""

    cuts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Folder of a cut before the last -> {"steps"}, as above; empty where one cut did it."""

    @property
    def distilled(self) -> Path:
        """The compressed model."""
        return self.output / DISTILLED

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.output / REPORT

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return {
            "steps": dict(self.steps),
            "models": dict(self.models),
            "serve": self.serve,
            "cuts": dict(self.cuts),
        }


def compress(
    request: Compression, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note
) -> Compressed:
    """Carry out the steps that are not done: score, plan, prune, distill, evaluate.

    A script that calls this needs the usual `if __name__ == "__main__":` where speed is measured.  Raises MinitronError
    where the folder holds another run, unless it may be overwritten."""
    if request.plannings:
        raise ValueError("several budgets are a family: call compress_family")
    request.planning.require_limits()
    request = check(request, progress, note)
    with sole(request.output):
        run, record = open_run(request, _NAMES, overwrite=overwrite)
        require_sound(request.output, record)
        request = prepared(request, progress, note)
        _require_cuttable(request)
        _require_writable(request)
        require_exportable(request)
        if missing(request.output, (DEQUANTISED, TEXT), record):
            run.write(record)
        request, cuts = _cut_before(request, progress, note)
        _carry_out(request, run, record, (() if request.exports else (EXPORT,)), progress, note)
        models = read_json(request.output / EVALUATION)["models"]
        file = str(request.output / GGUF) if request.exports else ""
        serve = serve_line_for(request.output / DISTILLED, _served(request), file)
        return Compressed(request.output, record["steps"], models, serve, cuts)


def _cut_before(request: Compression, progress: Progress, note: Note) -> tuple[Compression, dict[str, Any]]:
    """Make the cuts that come before the last one; the request of the last, and what came of the others by folder."""
    from minitron.model.spec import read_spec

    cuts: dict[str, Any] = {}
    if request.steps_of is None:
        return request, cuts
    spec = read_spec(request.model)
    left = cuts_of(request, spec, left_by_search(request, spec))
    for number in range(1, len(left)):
        note(f"cut {number} of {len(left)}: to {left[number - 1]:,} parameters at most")
        earlier = earlier_cut(request, number, left)
        with sole(earlier.output):
            run, record = open_run(earlier, _NAMES, overwrite=False)
            require_sound(earlier.output, record)
            _carry_out(earlier, run, record, (EXPORT, "evaluate"), progress, note)
        cuts[earlier.output.name] = {"steps": record["steps"]}
    if not cuts:  # one is enough
        return request, cuts
    note(f"cut {len(left)} of {len(left)}: to what was asked for")
    return last_cut(request, left), cuts


def _carry_out(
    request: Compression,
    run: RunFolder,
    record: dict[str, Any],
    left_out: tuple[str, ...],
    progress: Progress,
    note: Note,
) -> None:
    """Carry out the steps that are not done, but for those left out."""

    def keep(*artefacts: str) -> None:
        if missing(request.output, artefacts, record):
            run.write(record)

    steps = {name: step for name, step in STEPS.items() if name not in left_out}
    for number, (name, step) in enumerate(steps.items(), 1):
        artefact, function = step
        if (request.output / artefact).exists():
            note(f"[{number}/{len(steps)}] {name}: already done, {artefact} is kept")
            keep(*_parts(artefact))
            continue
        note(f"[{number}/{len(steps)}] {name}")
        started = time.monotonic()

        def done(results: Mapping[str, Any], name: str = name, started: float = started) -> None:
            record["steps"][name] = {"seconds": round(time.monotonic() - started, 3), "results": dict(results)}
            run.write(record)

        function(request, done, progress, note)
        keep(*_parts(artefact))
    _tidy(request.output)


def open_run(request: Compression, names: tuple[str, ...], *, overwrite: bool) -> tuple[RunFolder, dict[str, Any]]:
    """run.json of a new folder, or of the one to go on with; `names` is what runs leave in it."""
    from minitron.measure.records import Source
    from minitron.model.identity import file_hashes
    from minitron.model.spec import read_spec

    # No name is one of the settings', or the one would hide the other.
    texts = {"calibration": request.calibration_text, "data": request.data, "heldout": request.heldout}
    given = [path for path in (*texts.values(), request.scores) if path is not None]
    scored = {} if request.scores is None else {"scores": file_hashes([request.scores])[0]}

    def asked(before: Begun) -> dict[str, Any]:
        hashes = {name: Source(str(path)).fingerprint() for name, path in texts.items() if path is not None}
        weights = weights_of(request.model, part(before, "weights"))
        about = {"model": read_spec(request.model).fingerprint, "weights": weights, **hashes, **request.settings}
        about |= scored
        return about | {"tokenizer": tokenizer_hash(request.model)}

    run = RunFolder(request.output, RUN, "a run folder of minitron", names)
    record = run.open(asked, key="asked", overwrite=overwrite, anew=overwrite, inputs=(request.model, *given))
    record.setdefault("steps", {})
    return run, record


def _parts(artefact: str) -> tuple[str, ...]:
    """The files and folders that an artefact is made of."""
    from minitron.cut.plan import beside

    return (artefact, beside(Path(artefact)).name) if artefact == PLAN else (artefact,)


def _tidy(folder: Path) -> None:
    """Remove what steps that were killed left behind."""
    for place in (folder, folder / FINALISTS):
        for left in list(place.iterdir()) if place.is_dir() else []:
            if is_leftover(left.name) or left.name == f"{DISTILLED}.work":
                remove(left)


def _require_cuttable(request: Compression) -> None:
    """Raise MinitronError where nothing of the model can be cut as is asked: told before it is scored."""
    from minitron.cut.selection import require_cuttable
    from minitron.model.spec import read_spec
    from minitron.search.per_layer import require_by_layer

    spec = read_spec(request.model)
    require_cuttable(spec, by_layer=False)
    if request.searching.sizes == "per-layer":
        require_by_layer(spec)


def _require_writable(request: Compression) -> None:
    """Raise MinitronError where what is left of the model cannot be kept in its formats: told early."""
    from minitron.model.spec import read_spec

    if (wanted := request.wanted) is not None:
        from minitron.model.checkpoint import Checkpoint
        from minitron.quantise.assigned import assign

        assign(read_spec(request.model), Checkpoint(request.model), wanted)


def require_exportable(request: Compression) -> None:
    """Raise MinitronError where a GGUF file is to be written and what it needs is not there: told early."""
    from minitron.gguf.extra import converter, quantise_rows
    from minitron.memory.gguf import require_counted
    from minitron.model.spec import read_spec

    if request.exports:
        require_counted(read_spec(request.model))
        converter()
        quantise_rows()


def _served(request: Compression) -> Planning:
    """The plan's workload, keys, values and states as the search chose."""
    from minitron.cut.plan import load_plan
    from minitron.search.format_choices import KV, STATE

    planning = request.planning
    if not planning.search_kv:
        return planning
    formats = load_plan(request.output / PLAN).formats
    kv, state = formats.get(KV, planning.kv), formats.get(STATE, planning.ssm_state)
    return replace(planning, kv=kv, ssm_state=state, search_kv=False)
