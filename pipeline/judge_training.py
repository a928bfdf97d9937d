"""Train a judge on pairs of which the better answer is known.

The trained judge is written to the output under the names and types of the model that it was, with judge_training.json
(the curve) and rollouts.jsonl (some of what it said at each step).  Until then checkpoints are in OUTPUT.work, from
which a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from judge.instructions import read_instructions
from judge.learning import Learning
from minitron.errors import MinitronError
from minitron.files import refuse_existing, sole, write_json
from minitron.measure.options import Dtype
from minitron.measure.records import Source
from minitron.progress import Note, Progress, no_note, silent
from minitron.run_folder import RunFolder

if TYPE_CHECKING:
    from judge.contests import Contest
    from judge.local import LocalModel
    from judge.rollouts import Row
    from judge.training import Trained

TRAINING: Final = "judge_training.json"

_RUN: Final = "run.json"


@dataclass(frozen=True)
class JudgeTraining:
    """A judge, and the pairs that it learns from."""

    model: Path
    """The judge as it is: a checkpoint folder, or a name on the hub."""

    pairs: Path
    """A file or folder of pairs, in a layout of judge.benchmark."""

    output: Path
    """Where the trained judge goes."""

    learning: Learning = field(default_factory=Learning)

    held_out: Path | None = None
    """Pairs that it is tried on, before, while and after it learns."""

    held_out_pairs: int = 128
    """Of these at most, spread over the file."""

    samples: int | None = None
    """Rows of `pairs`, at most, spread over the file; None is all."""

    instructions: Path | None = None
    """A file of instructions; None is our own."""

    dtype: Dtype = "bf16"
    """The numbers that a GPU computes in; weights are trained in fp32, and a CPU computes in it."""

    device: str | None = None
    """cpu or cuda; None is the first GPU, or else the CPU."""

    @property
    def work(self) -> Path:
        """Where checkpoints are kept until the output is complete."""
        return self.output.with_name(f"{self.output.name}.work")

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside files, as JSON; how long it may take and how often it is saved change nothing."""
        learning = asdict(self.learning)
        for name in ("max_seconds", "checkpoint_every"):
            del learning[name]
        instructions = read_instructions(self.instructions).fingerprint
        about = {"learning": learning, "instructions": instructions, "dtype": self.dtype}
        return about | {"samples": self.samples, "held_out_pairs": self.held_out_pairs}


@dataclass(frozen=True)
class TrainedJudge:
    """What training left."""

    output: Path
    results: Mapping[str, Any]
    """As in judge_training.json: `judge`, `pairs`, `steps`, `generated_tokens`, `before`, `after`, `curve`..."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return dict(self.results)


def train_judge(
    request: JudgeTraining, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note
) -> TrainedJudge:
    """Train the judge and write it; called again after a stop, it goes on from the newest checkpoint.

    Raises MinitronError where trl is missing, the pairs cannot be read, the output exists or another process writes
    it, and where the judge does not keep to the format at all: its rollouts stay in the folder of the work."""
    from judge.local import LocalModel
    from judge.speaking import Speaking
    from judge.training import CHECKPOINTS, CURVE, ROLLOUTS, require_trl, train
    from minitron.files import remove
    from minitron.model.identity import weights_of
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_plain

    require_trl()
    inputs = tuple(path for path in (request.model, request.pairs, request.held_out) if path is not None)
    with sole(request.output, request.work):
        refuse_existing(request.output, overwrite=overwrite, inputs=inputs)
        instructions = read_instructions(request.instructions)
        learning = request.learning
        pairs = _read(request.pairs, request.samples, note)
        tried = () if request.held_out is None else _read(request.held_out, request.held_out_pairs, note)
        learning.steps_of(2 * len(pairs))
        require_plain(request.model)
        folder = local_folder(request.model, progress, note)
        judge = LocalModel(folder, Speaking(max_tokens=learning.max_tokens), request.dtype, request.device)
        rows, held_out = (_fitting(judge, request, each, note) for each in (pairs, tried))
        asked = {"judge": weights_of(folder)["sha256"], "pairs": Source(str(request.pairs)).fingerprint()}
        if request.held_out is not None:
            asked["held_out"] = Source(str(request.held_out)).fingerprint()
        run = RunFolder(request.work, _RUN, "the working folder of a judge's training", (CHECKPOINTS, CURVE, ROLLOUTS))
        saved = any((request.work / CHECKPOINTS).glob("checkpoint-*"))
        run.open(lambda before: asked | request.settings, overwrite=overwrite or not saved, inputs=inputs)
        trained = train(judge, rows, instructions, learning, request.work, held_out=held_out, progress=progress)
        document = _document(request, judge, len(pairs), trained)
        _write(request, folder, trained, document, overwrite)
        remove(request.work)
    return TrainedJudge(request.output, document)


def _read(path: Path, samples: int | None, note: Note) -> tuple[Contest, ...]:
    from judge.benchmark import read_benchmark

    found = read_benchmark(path, samples).contests
    kept = tuple(contest for contest in found if all(answer.strip() for answer in contest.answers))
    if not kept:
        raise MinitronError(f"{path} has no pair of which both answers say something; give another file.")
    if len(kept) < len(found):
        note(f"{len(found) - len(kept):,} pairs of {path} are left out: one of their answers is empty.")
    return kept


def _fitting(judge: LocalModel, request: JudgeTraining, contests: tuple[Contest, ...], note: Note) -> list[Row]:
    """Both orders of all pairs that the judge can read with its turns; raises MinitronError where there are none."""
    from judge.rollouts import Roller, in_both_orders
    from minitron.measure.rendering import Renderer
    from minitron.model.configs import spec_if_known

    rows = list(in_both_orders(contests))
    spec = spec_if_known(judge.folder)
    longest = None if spec is None else spec.value("max_position_embeddings")
    if not isinstance(longest, int) or not rows:
        return rows
    turns = 2 if request.learning.turns == "two" else 1
    room = longest - turns * request.learning.max_tokens
    with Renderer(judge.tokenizer) as renderer:
        roller = Roller(judge, read_instructions(request.instructions), renderer, request.learning.turns)
        fits = [len(roller.prompt(row).ids) <= room for row in rows[::2]]
    kept = [row for row, fit in zip(rows, (fit for fit in fits for _ in range(2)), strict=True) if fit]
    if not kept:
        raise MinitronError(
            f"no pair leaves room for {turns} turns of {request.learning.max_tokens:,} tokens in the {longest:,} that "
            f"{judge.folder} reads; lower --max-tokens."
        )
    if len(kept) < len(rows):
        note(f"{(len(rows) - len(kept)) // 2:,} pairs are left out: with both turns they are longer than {longest:,}.")
    return kept


def _document(request: JudgeTraining, judge: LocalModel, pairs: int, trained: Trained) -> dict[str, Any]:
    curve = trained.curve
    tried = curve.tried
    return {
        "judge": judge.name,
        "turns": request.learning.turns,
        "pairs": pairs,
        "steps": curve.lines[-1]["step"],
        "generated_tokens": curve.tokens,
        "stopped": trained.stopped,
        "before": tried[0]["held_out"] if tried else None,
        "after": tried[-1]["held_out"] if tried else None,
        "settings": request.settings,
        "curve": curve.lines,
    }


def _write(
    request: JudgeTraining, folder: Path, trained: Trained, document: Mapping[str, Any], overwrite: bool
) -> None:
    from distill.run.output import write_student
    from judge.training import ROLLOUTS
    from minitron.cut.companions import copy_own

    def done(partial: Path) -> None:
        write_json(partial / TRAINING, dict(document))
        copy_own(request.work / ROLLOUTS, partial)

    write_student(trained.model, folder, request.output, card=_card(document), overwrite=overwrite, done=done)


def _card(document: Mapping[str, Any]) -> str:
    from minitron.escapes import code

    lines = [
        "---",
        "tags: [minitron, judge]",
        "---",
        "# A judge that reads twice" if document["turns"] == "two" else "# A judge",
        "",
        f"{code(document['judge'])}, trained by Minitron on {document['pairs']:,} pairs: {document['steps']:,} steps, "
        f"{document['generated_tokens']:,} generated tokens.",
    ]
    if document["after"] is not None:
        before, after = (document[name]["accuracy"]["value"] for name in ("before", "after"))
        lines += [
            "",
            f"Accuracy on held-out pairs in both orders, broken formats wrong: {before:.1%}, now {after:.1%}.",
        ]
    return "\n".join(lines) + "\n"
