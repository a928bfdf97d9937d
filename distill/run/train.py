"""Distillation as a whole: two checkpoints, a text and a recipe in, a trained checkpoint out."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.compiled import require_compiler
from distill.run.loop import train
from distill.run.mtp import Predictor
from distill.run.output import write_outputs
from distill.run.request import Request
from distill.run.result import DistillResult, result_of
from distill.run.tasks import asker
from distill.run.trackers import TRACKERS, require_tracker
from distill.run.trainer import Trainer
from distill.run.work import Work
from distill.teacher.drift import Drift
from distill.teacher.fp8 import DEFAULT, Kept
from distill.teacher.teacher_source import Teaching
from distill.text.data import Text, read_text
from distill.text.records import Source
from minitron.errors import MinitronError
from minitron.model.loading import find_device, load_model, load_tokenizer
from minitron.progress import Progress, silent
from minitron.units import format_bytes


def _no_note(text: str) -> None:
    return


def distill(
    student: Path,
    teacher: Path,
    data: Path | Sequence[Source],
    output: Path,
    recipe: Recipe,
    *,
    validation: Path | None = None,
    teacher_precision: str = "bf16",
    fp8_keep: Kept = DEFAULT,
    cache: Path | None = None,
    offload_teacher: bool = False,
    device: str | None = None,
    teacher_device: str | None = None,
    overwrite: bool = False,
    work: Path | None = None,
    processes: Processes | None = None,
    earlier: Sequence[DistillResult] = (),
    origin: Path | None = None,
    track: str = "none",
    tracked: Path | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = _no_note,
) -> DistillResult:
    """Train the checkpoint `student` on the logits of `teacher` over the text `data`, a file or a blend of sources, and
    write it to `output`.

    Checkpoints are kept in the folder `work`, beside the output and named after it unless given; a run that stopped,
    however it did, goes on from the newest when it is called again with the same arguments, and gives the same weights
    bit for bit on the same machine.  The folder is removed when the output is complete.  `device` is as torch spells
    it, the first GPU or else the CPU unless given; `teacher_device` is the teacher's where that is another; `fp8_keep`
    is what of a teacher in FP8 stays in bf16; `cache` is a folder in which what a sparse loss reads of the teacher is
    kept, and found by later runs; `offload_teacher` reads its layers from the disk; `note` is told what was
    measured before training.  `earlier` are the stages before this one, which began with `origin`: the model card tells
    of them.  `track` is a name of distill.run.trackers.TRACKERS, which knows the run by the name of
    `tracked`, or else of the output.

    Raises MinitronError, before anything is loaded, where the inputs do not fit each other or the output exists, and
    where a step's loss is not finite; Stopped on SIGINT or SIGTERM, after the step in hand is saved."""
    place, processes = find_device(device), processes or Processes()
    sources = [Source(str(data))] if isinstance(data, Path) else list(data)
    work_folder = Work(work or output.with_name(f"{output.name}.work"))
    teaching = Teaching(
        teacher, find_device(teacher_device or device), teacher_precision, fp8_keep, offload_teacher, cache
    )
    request = Request(student, teaching, tuple(sources), validation, recipe)
    request.check(output, overwrite=overwrite)
    require_tracker(track)
    if recipe.compile:
        require_compiler(place)
    processes.require_share(recipe.sequences_per_step)
    if processes.is_first:
        work_folder.open(request.fingerprint, overwrite=overwrite)
    processes.wait()
    text = _read(student, sources, validation, recipe, work_folder, processes)
    if text.broken:
        note(text.told_of_broken())
    start = work_folder.read_start()
    reference, measured = teaching.prepare(student, text, recipe, start, processes, progress)
    model = load_model(student, dtype=torch.float32, device=place)
    mtp = Predictor(student, model) if recipe.mtp_weight else None
    trainer = Trainer(model, reference, text, recipe, work_folder, processes, asker(recipe, student), mtp)
    is_new, start = start is None, _begin(trainer, measured, start)
    note(_told_before(trainer, start, teacher_precision))
    if is_new and processes.is_first and (told := teaching.warn(start, text, recipe, progress)) is not None:
        note(told)
    processes.wait()
    train(
        trainer,
        progress,
        note,
        partial(TRACKERS[track if processes.is_first else "none"], tracked or output, recipe.to_json()),
    )
    result = result_of(trainer, start, output, teacher_precision)
    if processes.is_first:
        write_outputs(
            trainer,
            result,
            student,
            teacher=teacher,
            source=text.source,
            origin=origin or student,
            earlier=earlier,
            overwrite=overwrite,
            note=note,
        )
        work_folder.close()
    processes.wait()
    return result


def _read(
    student: Path,
    data: Sequence[Source],
    validation: Path | None,
    recipe: Recipe,
    work: Work,
    processes: Processes,
) -> Text:
    """The text as tokens in the working folder; one process makes them, the others map the same files."""

    def read() -> Text:
        return read_text(
            load_tokenizer(student),
            data,
            sequence_length=recipe.sequence_length,
            validation=validation,
            validation_sequences=recipe.validation_sequences,
            folder=work.tokens,
            assistant_only=recipe.assistant_only,
            most_broken=recipe.most_broken,
        )

    text = None
    if processes.is_first:
        try:
            text = read()
        except MinitronError:
            # Nothing has been trained yet: a text that does not do leaves nothing behind.
            if work.read_start() is None:
                work.close()
            raise
    processes.wait()
    return read() if text is None else text


def _begin(trainer: Trainer, measured: dict[str, Any], start: dict[str, Any] | None) -> dict[str, Any]:
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
    if (checkpoint := trainer.checkpoints.newest()) is not None:
        trainer.restore(checkpoint)
    trainer.processes.wait()
    if first:
        work.cut_metrics(trainer.step)
    return start


def _told_before(trainer: Trainer, start: dict[str, Any], teacher_precision: str) -> str:
    """What there is to gain, and from where the run goes on: one sentence a line."""
    lines = []
    if start["drift"] is not None:
        drift = Drift(**start["drift"])
        lines.append(
            f"Teacher in {teacher_precision}: {format_bytes(drift.stored_bytes)} instead of "
            f"{format_bytes(drift.bf16_bytes)}; drift from bf16: KL {drift.kl:.3g} nats, top-1 agreement "
            f"{drift.top1_agreement:.2%} over {drift.tokens:,} held-out tokens; the student is "
            f"{start['before']['kl'] / max(drift.kl, 1e-12):,.0f} times as far away."
        )
    before = start["before"]
    lines.append(
        f"Student before training: KL {before['kl']:.4f} nats, perplexity {before['perplexity']:.4g}; "
        f"the teacher's perplexity is {start['perplexity_teacher']:.4g}."
    )
    if trainer.step:
        lines.append(f"Going on after step {trainer.step} of {trainer.recipe.total_steps}.")
    return "\n".join(lines)
