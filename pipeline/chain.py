"""The chain that `compress` and `demo` run: score, plan, prune, distill, evaluate, each one artefact of one folder.

An artefact is complete or absent, so a step is done when its artefact exists: a run that was killed anywhere goes on
with the first step that is not.  run.json says what the run was asked for; another request does not go on from it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from minitron.files import new_folder, read_json, refuse_existing, write_json, write_text
from minitron.progress import Progress
from pipeline.stages import Stages, cut_depth_first

if TYPE_CHECKING:
    from cli.cutting import Cutting
    from cli.planning import Planning
    from cli.searching import Searching
    from distill.recipe import Recipe

Note = Callable[[str], None]
"""Says a sentence to whoever watches."""

RUN: Final = "run.json"
SCORES: Final = "scores.safetensors"
PLAN: Final = "plan.json"
PRUNED: Final = "pruned"
DISTILLED: Final = "distilled"
EVALUATION: Final = "evaluation.json"
TEXT: Final = "text"
TRIALS: Final = "trials.jsonl"
SEARCH: Final = "search.json"
REPORT: Final = "report"

_HELD_OUT: Final = 0.05
"""The share of the training text that judges, where no other text is given to."""


@dataclass(frozen=True)
class Chain:
    """One request to compress a model, and the folder in which it is carried out."""

    folder: Path
    """The run folder."""

    model: Path
    """The checkpoint to compress, and the teacher of what is left of it."""

    planning: Planning
    """What there is, and which architectures to look at."""

    searching: Searching
    """How candidates are measured before one is chosen."""

    cutting: Cutting
    """How what is chosen is cut."""

    calibration: Path
    """Text for scores."""

    training: Path
    """Text for distillation."""

    heldout: Path | None
    """Text that the others do not hold, for the evaluation; None holds back the end of the training text."""

    recipe: Recipe
    """How to distil."""

    teacher_precision: str = "bf16"
    device: str | None = None

    scoring: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of importance.score.calibrate.calibrate."""

    evaluating: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of minitron.measure.evaluate.evaluate_folders."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that was asked for, as JSON: what a run that goes on must agree with."""

    def __post_init__(self) -> None:
        texts = {path.resolve() for path in (self.calibration, self.training)}
        if self.heldout is not None and self.heldout.resolve() in texts:
            raise MinitronError(
                f"{self.heldout} is given for training and for judging; give --text another file or leave it out."
            )


def run_chain(chain: Chain, *, progress: Progress, note: Note, overwrite: bool) -> dict[str, Any]:
    """Carry out the steps that are not done; the results of all, as JSON.

    Raises MinitronError where the folder holds another run, unless it may be overwritten."""
    from minitron.measure.text import documents

    for path in {chain.calibration, chain.training, chain.heldout or chain.training}:
        next(documents(path))
    record = _open_run(chain, overwrite=overwrite)
    if chain.heldout is None:
        chain = _hold_out(chain)
    for number, (name, step) in enumerate(STEPS.items(), 1):
        artefact, function = step
        if (chain.folder / artefact).exists():
            note(f"[{number}/{len(STEPS)}] {name}: done before, {artefact} is kept")
            continue
        note(f"[{number}/{len(STEPS)}] {name}")
        started = time.monotonic()
        results = function(chain, progress, note)
        record["steps"][name] = {"seconds": round(time.monotonic() - started, 3), "results": results}
        write_json(chain.folder / RUN, record)
    return {"steps": record["steps"], "models": read_json(chain.folder / EVALUATION)["models"]}


def _open_run(chain: Chain, *, overwrite: bool) -> dict[str, Any]:
    """run.json of a new folder, or of the one to go on with."""
    from minitron.measure.text import text_hash

    texts = {name: text_hash(path) for name in ("calibration", "training", "heldout") if (path := getattr(chain, name))}
    from minitron.model.spec import read_spec

    asked = json.loads(json.dumps({"model": read_spec(chain.model).fingerprint, **texts, **chain.settings}))
    path = chain.folder / RUN
    if chain.folder.exists() and overwrite:
        if not path.is_file() and any(chain.folder.iterdir()):
            raise MinitronError(
                f"{chain.folder} is no run folder of minitron, so it is not overwritten; choose another."
            )
        inputs = [chain.model, chain.calibration, chain.training, *([chain.heldout] if chain.heldout else [])]
        refuse_existing(chain.folder, overwrite=True, inputs=inputs)
        shutil.rmtree(chain.folder)
    if path.is_file():
        record: dict[str, Any] = read_json(path)
        before = record["asked"]
        for key in sorted(asked.keys() | before.keys()):
            if asked.get(key) != before.get(key):
                raise MinitronError(
                    f"{chain.folder} holds a run with another {key} ({before.get(key)!r}, now {asked.get(key)!r}); "
                    "ask for the same, choose another output or pass --overwrite."
                )
        return record
    if chain.folder.exists() and any(chain.folder.iterdir()):
        raise MinitronError(f"{chain.folder} exists and is no run folder of minitron; choose another output.")
    record = {"asked": asked, "steps": {}}
    write_json(path, record)
    return record


def _hold_out(chain: Chain) -> Chain:
    """The chain with the last twentieth of the training text kept for judging, in files of the run folder."""
    from minitron.measure.text import documents

    folder = chain.folder / TEXT
    if not folder.exists():
        whole = "\n\n".join(documents(chain.training))
        # The next paragraph, line or word after the mark, whichever kind the text has.
        mark = int(len(whole) * (1 - _HELD_OUT))
        last = (mark + len(whole)) // 2
        cut = next((at for end in ("\n\n", "\n", " ") if (at := whole.find(end, mark, last)) >= 0), mark)
        with new_folder(folder) as partial:
            write_text(partial / "training.txt", whole[:cut])
            write_text(partial / "heldout.txt", whole[cut:])
    training = folder / "training.txt"
    calibration = training if chain.calibration == chain.training else chain.calibration
    return replace(chain, training=training, calibration=calibration, heldout=folder / "heldout.txt")


def _score(chain: Chain, progress: Progress, note: Note) -> dict[str, Any]:
    from importance.score.calibrate import calibrate

    held_back = chain.searching.held_back
    scores = calibrate(
        chain.model,
        chain.calibration,
        held_back=held_back,
        moments_folder=chain.folder,
        device=chain.device,
        progress=progress,
        **chain.scoring,
    )
    scores.save(chain.folder / SCORES)
    return dict(scores.settings)


def _plan(chain: Chain, progress: Progress, note: Note) -> dict[str, Any]:
    from minitron.cut.scores import load_scores
    from minitron.model.spec import read_spec
    from pipeline.choosing import choose

    spec, scores = read_spec(chain.model), load_scores(chain.folder / SCORES)
    choice = choose(chain, spec, scores, progress, note)
    choice.write_report(chain.folder / REPORT)
    # The last of all that this step writes: it says that the step is done.
    choice.plan.save(chain.folder / PLAN, overwrite=True)
    result = choice.result
    return {
        "chosen": result.best.to_json(),
        "searched": result.searched,
        "feasible": result.feasible,
        "measured": choice.measured,
    }


def _prune(chain: Chain, progress: Progress, note: Note) -> dict[str, Any]:
    from minitron.cut.plan import load_plan
    from minitron.cut.prune import prune

    plan = load_plan(chain.folder / PLAN)
    if chain.searching.stages is Stages.DEPTH_WIDTH and plan.sizes and len(plan.layers) < _layers(chain.model):
        return dict(
            cut_depth_first(
                chain.model,
                plan,
                chain.folder,
                chain.folder / PRUNED,
                chain.calibration,
                dict(chain.scoring),
                chain.cutting.arguments,
                held_back=chain.searching.held_back,
                device=chain.device,
                progress=progress,
            )
        )
    return prune(chain.model, plan, chain.folder / PRUNED, progress=progress).to_json()


def _layers(model: Path) -> int:
    from minitron.model.spec import read_spec

    return len(read_spec(model).layers)


def _distill(chain: Chain, progress: Progress, note: Note) -> dict[str, Any]:
    from distill.run.train import distill

    result = distill(
        chain.folder / PRUNED,
        chain.model,
        chain.training,
        chain.folder / DISTILLED,
        chain.recipe,
        teacher_precision=chain.teacher_precision,
        device=chain.device,
        progress=progress,
        note=note,
    )
    return dict(result.to_json())


def _evaluate(chain: Chain, progress: Progress, note: Note) -> dict[str, Any]:
    from minitron.cut.prune import DISTILLATION
    from minitron.measure.evaluate import evaluate_folders
    from minitron.report.document import add_training

    assert chain.heldout is not None
    add_training(chain.folder / REPORT, read_json(chain.folder / DISTILLED / DISTILLATION))
    folders = {"teacher": chain.model, "pruned": chain.folder / PRUNED, "distilled": chain.folder / DISTILLED}
    measured = evaluate_folders(
        list(folders.values()),
        against=chain.model,
        text=chain.heldout,
        device=chain.device,
        progress=progress,
        **chain.evaluating,
    )
    models = {name: evaluation.to_json() for name, evaluation in zip(folders, measured, strict=True)}
    write_json(chain.folder / EVALUATION, {"models": models})
    return {}


STEPS: Final[dict[str, tuple[str, Callable[[Chain, Progress, Note], dict[str, Any]]]]] = {
    "score": (SCORES, _score),
    "plan": (PLAN, _plan),
    "prune": (PRUNED, _prune),
    "distill": (DISTILLED, _distill),
    "evaluate": (EVALUATION, _evaluate),
}
"""step -> (the artefact that says it is done, what makes it)."""
