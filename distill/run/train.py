"""A whole distillation: from two checkpoints, a text and a recipe to a trained checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from distill.processes import Processes
from distill.rate import usual_rate
from distill.recipe import Recipe
from distill.run.compiled import require_compiler
from distill.run.distillation import Distillation
from distill.run.domains import Faculty, joined
from distill.run.fake_quantised import Calibrate, FakeQuantised
from distill.run.loop import train
from distill.run.mtp import Predictor
from distill.run.output import calibration, write_outputs
from distill.run.own_text import own_text
from distill.run.range_test import RangeTest, find_learning_rate
from distill.run.request import Request, beside
from distill.run.result import DistillResult, result_of
from distill.run.rounded_start import RoundedStart, write_start
from distill.run.stream_match import StreamMatch
from distill.run.tasks import asker
from distill.run.trackers import TRACKERS, require_tracker
from distill.run.trainer import Beside, Trainer
from distill.run.work import Work
from distill.teacher.drift import Drift
from distill.teacher.loading import known_spec
from distill.teacher.teacher_source import Reference
from distill.text.data import Text, read_text
from distill.text.tokens import require_sound
from minitron.errors import MinitronError
from minitron.files import sole
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import (
    find_device,
    load_model,
    load_tokenizer,
    require_embeddings,
    told_of_software,
)
from minitron.model.spec import ModelSpec, read_spec
from minitron.progress import Note, Progress, no_note, silent
from minitron.quantise.assigned import assign
from minitron.run_folder import part
from minitron.units import format_bytes

Done = Callable[[DistillResult, Path], None]


@dataclass(frozen=True)
class Among:
    """Where a run stands among the stages of a recipe."""

    earlier: Sequence[DistillResult] = ()
    """The stages before this one, of which the model card tells."""

    is_last: bool = True
    """Whether the student gets its format; those between are in 16 bits."""

    origin: Path | None = None
    """The student of the first stage; None is this run's."""

    tracked: Path | None = None
    """What a tracker calls the run; None is its output."""

    rounded: Path | None = None
    """Where the first stage keeps the scales of a student in fewer bits; None is the run's own working folder."""


ALONE = Among()
"""A run that is the only stage."""


def distill(
    asked: Distillation,
    recipe: Recipe,
    *,
    processes: Processes | None = None,
    among: Among = ALONE,
    calibrate: Calibrate | None = None,
    done: Done = lambda result, partial: None,
    progress: Progress = silent,
    note: Note = no_note,
) -> DistillResult:
    """Train `asked.student` on the logits of `asked.teacher` as the recipe says, and write it to `asked.output`.

    A run that stopped, however it did, goes on from its newest checkpoint when it is called again with the same
    arguments, and gives the same weights bit for bit on the same machine.  The folder of checkpoints is removed when
    the output is complete.  `calibrate` gives a student in fewer bits its beginning and the scales of its inputs.
    `note` is told what was measured before training, `done` the result, and the folder that is whole, before that gets
    the output's name.

    Raises MinitronError, before anything is loaded, where the inputs do not fit each other, the output exists or
    another process writes it, and where a step's loss is not finite; Stopped on SIGINT or SIGTERM, after the step in
    hand is saved."""
    place, processes = find_device(asked.device), processes or Processes()
    request, work, first = Request(asked, recipe), Work(asked.work_folder), processes.is_first
    with sole(asked.output, beside(asked.output, recipe), work.folder, first=first):
        request.check()
        require_tracker(asked.track)
        if recipe.compile:
            require_compiler(place)
        processes.require_share(recipe.sequences_per_step)
        if request.domains is not None and processes.world_size > 1:
            raise MinitronError("several teachers work with one process only; give one teacher, or one process.")
        if first:
            work.open(request.fingerprint, overwrite=asked.overwrite, inputs=request.inputs)
        processes.wait()
        with work.beginning() if first else nullcontext():
            text = _read(request, work, processes, note)
            fake = partial(_fake, request, text, among, work, processes, calibrate, progress)
            trainer, start, formats, test = _prepare(request, text, work, processes, place, fake, progress, note)
        tracker = TRACKERS[asked.track if first else "none"]
        train(trainer, progress, note, partial(tracker, among.tracked or asked.output, trainer.recipe.to_json()))
        result = result_of(trainer, start, asked.output, asked.teacher_precision, test)
        if first:
            write_outputs(
                trainer,
                result,
                asked.student,
                teacher=asked.teacher,
                source=text.source,
                origin=among.origin or asked.student,
                earlier=among.earlier,
                overwrite=asked.overwrite,
                done=partial(done, result),
                note=note,
                fake=formats if among.is_last else None,
            )
            work.close()
        processes.wait()
    return result


def _read(request: Request, work: Work, processes: Processes, note: Note) -> Text:
    """The text as tokens in the working folder; one process makes them, the others read the same files.  `note` is told
    of broken records."""
    asked, recipe = request.asked, request.recipe

    def read() -> Text:
        return read_text(
            load_tokenizer(asked.student),
            asked.sources,
            sequence_length=recipe.sequence_length,
            validation=asked.validation,
            validation_sequences=recipe.validation_sequences,
            folder=work.tokens,
            assistant_only=recipe.assistant_only,
            most_broken=recipe.most_broken,
        )

    text = None
    if processes.is_first:
        for number in range(len(asked.sources)):
            require_sound(work.tokens / f"{number}")
        text = read()
        for folder in (asked.student, asked.teacher, *asked.teachers.values()):
            require_embeddings(folder, text.validation, np.array([part.tokens.highest for part in text.parts]))
    processes.wait()
    text = read() if text is None else text
    if text.broken:
        note(text.told_of_broken())
    return text


def _prepare(
    request: Request,
    text: Text,
    work: Work,
    processes: Processes,
    place: torch.device,
    fake: Callable[[ModelSpec, PreTrainedModel], FakeQuantised | None],
    progress: Progress,
    note: Note,
) -> tuple[Trainer, dict[str, Any], FakeQuantised | None, RangeTest | None]:
    """The trainer where the run stands, what was measured before the first step, which `note` is told, the formats of a
    student in fewer bits, which `fake` puts on it, and how its learning rate was found, where it was not given."""
    asked, recipe, start = request.asked, request.recipe, work.read_start()
    if (slow := told_of_software(recipe.precision, place)) is not None:
        note(slow)
    identity = request.teaching.fingerprint(part(work.run, "teacher", "weights"))
    teachers, measured = _teachers(request, text, start, identity, processes, progress)
    reference = teachers[0]
    model = load_model(asked.student, dtype=torch.float32, device=place)
    mtp = Predictor(asked.student, model) if recipe.mtp_weight else None
    ask, spec = asker(recipe, asked.student), known_spec(asked.student)
    formats = None if spec is None else fake(spec, model)
    recipe = _with_rate(recipe, model, is_rounded=formats is not None)
    stream = _stream(request, reference, model, measured)
    own = own_text(asked, recipe, model, processes) if recipe.on_policy else None
    faculty = None if request.domains is None else Faculty(request.domains, teachers[1:])
    trainer = Trainer(model, reference, text, recipe, work, processes, Beside(ask, mtp, spec, stream, own, faculty))
    test = find_learning_rate(trainer, progress, note)
    is_new, start = start is None, _begin(trainer, measured, start, note)
    for line in _told_before(trainer, start, asked.teacher_precision):
        note(line)
    if is_new and processes.is_first and (told := request.teaching.warn(start, text, recipe, progress)) is not None:
        note(told)
    processes.wait()
    return trainer, start, formats, test


def _with_rate(recipe: Recipe, student: PreTrainedModel, *, is_rounded: bool) -> Recipe:
    """The recipe with a learning rate, where it gives none and asks for no test."""
    if recipe.learning_rate is not None:
        return recipe
    hidden_size = student.get_output_embeddings().weight.shape[-1]
    return replace(recipe, learning_rate=usual_rate(hidden_size, is_rounded=is_rounded))


def _teachers(
    request: Request,
    text: Text,
    start: dict[str, Any] | None,
    identity: Mapping[str, Any],
    processes: Processes,
    progress: Progress,
) -> tuple[tuple[Reference, ...], dict[str, Any]]:
    """The teacher and those of domains, and what was measured of them on their own held-out text before the first
    step."""
    student, recipe, domains = request.asked.student, request.recipe, request.domains
    if domains is None:
        only, measured = request.teaching.prepare(student, text, recipe, start, identity, processes, progress)
        return (only,), measured
    found = [
        source.prepare(student, domains.own_text(text, number), recipe, start, {}, processes, progress)
        for number, source in enumerate((request.teaching, *request.others))
    ]
    all_measured = dict(start) if start is not None else joined(domains, text, [each for _, each in found])
    return tuple(reference for reference, _ in found), all_measured


def _stream(
    request: Request, teacher: Reference, student: PreTrainedModel, measured: Mapping[str, Any]
) -> StreamMatch | None:
    """How residual streams are compared, where they are, with what was `measured` of the teacher's."""
    if request.stream is None:
        return None
    mine, theirs = read_spec(request.asked.student), read_spec(request.asked.teacher)
    units = measured.get("stream_squares", ()), measured.get("stream_variances", ())
    return StreamMatch(*request.stream, (student, mine), (teacher, theirs), *units)


def _fake(
    request: Request,
    text: Text,
    among: Among,
    work: Work,
    processes: Processes,
    calibrate: Calibrate | None,
    progress: Progress,
    spec: ModelSpec,
    model: PreTrainedModel,
) -> FakeQuantised | None:
    """The formats of a student in fewer bits, put on `model`, which in the first stage begins where it is rounded to;
    None of one in 16."""
    asked, start, rounded = request.asked, None, among.rounded or work.rounded
    if asked.wanted is None:
        return None
    if asked.student_round == "best":
        if calibrate is None:
            raise ValueError("rounding with feedback needs something that calibrates")
        if processes.is_first and not rounded.exists():
            assigned = assign(spec, Checkpoint(asked.student), asked.wanted)
            rounding = calibrate(asked.student, calibration(text, request.recipe), feedback=True)
            write_start(rounded, asked.student, spec, assigned, rounding, progress=progress)
        processes.wait()
        start = RoundedStart.read(rounded)
    learns = asked.student_scales == "learned"
    fake = FakeQuantised.of(asked.student, spec, asked.wanted, calibrate, start=start, learns=learns)
    fake.put_on(model, spec, asked.student, start=None if among.earlier else start)
    return fake


def _begin(trainer: Trainer, measured: dict[str, Any], start: dict[str, Any] | None, note: Note) -> dict[str, Any]:
    """Put the trainer where the run stood; returns what was measured before the first step: of the teacher (`measured`)
    and of the student."""
    torch.manual_seed(trainer.recipe.seed)
    work, first = trainer.work, trainer.processes.is_first
    if start is None:
        start = measured | {"before": trainer.validate()}
        # The others must have seen that there is no such file yet.
        trainer.processes.wait()
        if first:
            work.write_start(start)
    trainer.curve = [start["before"]]
    if (checkpoint := trainer.checkpoints.sound(note)) is not None:
        trainer.restore(checkpoint)
    trainer.processes.wait()
    if first:
        work.cut_metrics(trainer.step)
    return start


def _told_before(trainer: Trainer, start: dict[str, Any], teacher_precision: str) -> list[str]:
    """What there is to gain, and from where the run goes on: one remark each."""
    lines = []
    if start["drift"] is not None:
        drift = Drift(**start["drift"])
        lines.append(
            f"Teacher in {teacher_precision}: {format_bytes(drift.stored_bytes)} instead of "
            f"{format_bytes(drift.bf16_bytes)}; drift from bf16: KL {drift.kl:.3g} nats, top-1 "
            f"agreement {drift.top1_agreement:.2%} over {drift.tokens:,} held-out tokens; the "
            f"student's KL is {start['before']['kl'] / max(drift.kl, 1e-12):,.0f} times that."
        )
    for name, found in start.get("drifts", {}).items():
        if found is not None:
            lines.append(f"The teacher of {name} drifts from bf16 by a KL of {found['kl']:.3g} nats.")
    before = start["before"]
    lines.append(
        f"Student before training: KL {before['kl']:.4f} nats, perplexity {before['perplexity']:.4g}; "
        f"the teacher's perplexity is {start['perplexity_teacher']:.4g}."
    )
    if (stream := trainer.objective.stream) is not None:
        lines.append(stream.told)
    if trainer.step:
        lines.append(f"Resuming after step {trainer.step} of {trainer.recipe.total_steps}.")
    return lines
