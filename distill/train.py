"""Distillation as a whole: two checkpoints, a text and a recipe in, a trained checkpoint out."""

import hashlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from distill.card import model_card
from distill.data import Text, describe, read_text
from distill.fp8 import DEFAULT, Kept
from distill.output import write_student
from distill.processes import Processes
from distill.recipe import Recipe
from distill.records import Source
from distill.teacher import DRIFT_LIMIT, DRIFT_SHARE, Drift, Teacher, drift_by_layer, load_teacher, require_precision
from distill.trainer import Trainer
from distill.work import Work
from minitron.checkpoint import Checkpoint
from minitron.errors import MinitronError
from minitron.files import refuse_existing
from minitron.loading import find_device, load_model, load_tokenizer, require_same_tokenizer
from minitron.progress import Progress, silent
from minitron.quality import measure_quality
from minitron.text import text_hash
from minitron.units import format_bytes


@dataclass(frozen=True)
class DistillResult:
    """What a run did and what came of it; KL is KL(teacher || student) in nats, on the held-out sequences."""

    output: Path
    """The folder written."""

    recipe: Recipe
    """How it was trained."""

    teacher_precision: str
    """How the teacher was kept."""

    steps: int
    """Optimiser steps."""

    tokens: int
    """Tokens trained on."""

    seconds: float
    """Time spent in steps, validations and checkpoints left out; of all runs where it was interrupted."""

    tokens_per_s: float
    """Tokens trained on a second of them."""

    kl_before: float
    """Before the first step."""

    kl_after: float
    """After the last."""

    perplexity_before: float
    perplexity_after: float
    perplexity_teacher: float
    """The teacher's, as it was kept."""

    drift: Drift | None
    """How far the teacher was from itself in bf16; None where it was in bf16."""

    curve: list[dict[str, float]]
    """Every validation: step, tokens, kl, perplexity, top1_agreement."""

    losses: list[float]
    """The training loss of every step; nan where it was not finite and the step was skipped."""

    @property
    def skipped(self) -> int:
        """Steps that were skipped."""
        return sum(math.isnan(loss) for loss in self.losses)

    def to_json(self) -> dict[str, Any]:
        """The results of the command: all fields but the inputs and the losses of single steps."""
        fields = {name: value for name, value in vars(self).items() if name not in ("output", "recipe", "losses")}
        return fields | {"skipped_steps": self.skipped, "drift": None if self.drift is None else asdict(self.drift)}


class Stopped(KeyboardInterrupt):
    """A signal came, and the step in hand was finished and saved."""


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
    device: str | None = None,
    overwrite: bool = False,
    work: Path | None = None,
    processes: Processes | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = _no_note,
) -> DistillResult:
    """Train the checkpoint `student` on the logits of `teacher` over the text `data`, a file or a blend of sources, and
    write it to `output`.

    Checkpoints are kept in the folder `work`, beside the output and named after it unless given; a run that stopped,
    however it did, goes on from the newest when it is called again with the same arguments, and gives the same weights
    bit for bit on the same machine.  The folder is removed when the output is complete.  `device` is as torch spells
    it, the first GPU or else the CPU unless given; `fp8_keep` is what of a teacher in FP8 stays in bf16; `note` is told
    what was measured before training.

    Raises MinitronError, before anything is loaded, where the inputs do not fit each other or the output exists, and
    where a step's loss is not finite; Stopped on SIGINT or SIGTERM, after the step in hand is saved."""
    place, processes = find_device(device), processes or Processes()
    sources = [Source(str(data))] if isinstance(data, Path) else list(data)
    work_folder = Work(work or output.with_name(f"{output.name}.work"))
    _check_inputs(student, teacher, sources, output, validation=validation, overwrite=overwrite)
    require_precision(teacher_precision, place)
    processes.require_share(recipe.sequences_per_step)
    if processes.is_first:
        kept_as = {"teacher_precision": teacher_precision} | _kept_in_bf16(teacher_precision, fp8_keep)
        text_is = {"text": describe(sources, validation)}
        work_folder.open(_run(student, teacher, recipe) | text_is | kept_as, overwrite=overwrite)
    processes.wait()
    text = _read(student, sources, validation, recipe, work_folder, processes)
    if text.broken and processes.is_first:
        note(f"{sum(part.tokens.broken for part in text.parts)} broken records left out: {'; '.join(text.broken)}.")

    start = work_folder.read_start()
    kept = load_teacher(
        teacher,
        precision=teacher_precision,
        keep=fp8_keep,
        device=place,
        # Drift is measured once a run.
        blocks=text.validation if start is None else None,
        batch_size=recipe.sequences_per_pass,
        progress=progress,
    )
    model = load_model(student, dtype=torch.float32, device=place)
    trainer = Trainer(model, kept.model, text, recipe, work_folder, processes)
    start = _begin(trainer, kept, start)
    note(_told_before(trainer, start, teacher_precision))
    if kept.drift is not None and (processes.is_first and _drifts(start)):
        found = drift_by_layer(
            teacher,
            keep=fp8_keep,
            device=place,
            blocks=text.validation,
            batch_size=recipe.sequences_per_pass,
            progress=progress,
        )
        note(_told_of_drift(start, found, fp8_keep))
    processes.wait()
    _train(trainer, progress, note)
    result = _result(trainer, start, output, teacher_precision)
    if processes.is_first:
        card = model_card(student, teacher, text.source, result)
        write_student(model, student, output, card=card, overwrite=overwrite)
        work_folder.close()
    processes.wait()
    return result


def _check_inputs(
    student: Path,
    teacher: Path,
    data: Sequence[Source],
    output: Path,
    *,
    validation: Path | None,
    overwrite: bool,
) -> None:
    texts = [source.path for source in data]
    inputs = [path for path in (student, teacher, *texts, validation) if path is not None]
    refuse_existing(output, overwrite=overwrite, inputs=inputs)
    if student.resolve() == teacher.resolve():
        raise MinitronError(f"{student} is both student and teacher; give the checkpoint it was cut from as --teacher.")
    for folder in (student, teacher):
        Checkpoint(folder)
    require_same_tokenizer(student, teacher)


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


def _kept_in_bf16(teacher_precision: str, keep: Kept) -> dict[str, str]:
    return {} if teacher_precision == "bf16" else {"fp8_keep": str(keep)}


def _run(student: Path, teacher: Path, recipe: Recipe) -> dict[str, Any]:
    """What a run depends on.  The teacher may be very large: its weights are named by their headers."""
    return {
        "student": {"config": text_hash(student / "config.json"), "weights": _weights_hash(student)},
        "teacher": {"config": text_hash(teacher / "config.json"), "weights": Checkpoint(teacher).fingerprint},
        "recipe": recipe.to_json(),
    }


def _weights_hash(folder: Path) -> str:
    files = sorted({header.file for header in Checkpoint(folder).headers.values()})
    return hashlib.sha256("".join(text_hash(file) for file in files).encode()).hexdigest()


def _begin(trainer: Trainer, teacher: Teacher, start: dict[str, Any] | None) -> dict[str, Any]:
    """Put the trainer where the run stood; returns what was measured before the first step."""
    torch.manual_seed(trainer.recipe.seed)
    work, first = trainer.work, trainer.processes.is_first
    if start is None:
        start = _measure_start(trainer, teacher)
        # The others must have seen that there is no such file yet.
        trainer.processes.wait()
        if first:
            work.write_start(start)
    trainer.curve = [start["before"]]
    if (checkpoint := work.newest()) is not None:
        trainer.restore(checkpoint)
    trainer.processes.wait()
    if first:
        work.cut_metrics(trainer.step)
    return start


def _measure_start(trainer: Trainer, teacher: Teacher) -> dict[str, Any]:
    """Teacher's perplexity, its drift and the untrained student, on the held-out sequences."""
    if teacher.drift is not None:
        perplexity = teacher.drift.perplexity
    else:
        found = measure_quality(teacher.model, trainer.text.validation, batch_size=trainer.recipe.sequences_per_pass)
        perplexity = found.perplexity
    drift = None if teacher.drift is None else asdict(teacher.drift)
    return {"perplexity_teacher": perplexity, "drift": drift, "before": trainer.validate()}


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


def _drifts(start: dict[str, Any]) -> bool:
    """Whether the teacher is so far from itself in bf16 that a layer or two had better stay there."""
    kl = start["drift"]["kl"]
    return bool(kl > DRIFT_LIMIT or kl > DRIFT_SHARE * start["before"]["kl"])


def _told_of_drift(start: dict[str, Any], found: dict[int, float], keep: Kept) -> str:
    """A warning, and the fewest layers that make up half of the change."""
    order = sorted(found, key=lambda layer: -found[layer])
    shares = np.cumsum([found[layer] for layer in order]) / max(sum(found.values()), 1e-30)
    worst = order[: int(np.searchsorted(shares, 0.5)) + 1]
    better = replace(keep, layers=keep.layers | frozenset(worst))
    return (
        f"Warning: the teacher's drift is {start['drift']['kl'] / start['before']['kl']:.1%} of the student's own "
        f"distance. Layers {', '.join(map(str, sorted(worst)))} make up {shares[len(worst) - 1]:.0%} of what FP8 "
        f"changes; keep them in bf16 with --fp8-keep {better}."
    )


def _train(trainer: Trainer, progress: Progress, note: Callable[[str], None]) -> None:
    """Step until the recipe is done; validate, save and stop in between as it says.  Raises Stopped."""
    recipe, work, first = trainer.recipe, trainer.work, trainer.processes.is_first
    with (
        progress("distilling", recipe.total_tokens - trainer.tokens, "tokens") as advance,
        _signals() as received,
    ):
        while trainer.step < recipe.total_steps:
            metrics = trainer.train_step()
            done = trainer.step == recipe.total_steps
            if first:
                work.append_metrics(**metrics, seconds=trainer.seconds)
            if done or trainer.step % recipe.validation_interval == 0:
                point = trainer.validate()
                if first:
                    work.append_metrics(step=trainer.step, validation=point)
            stop = bool(trainer.processes.sum(torch.tensor(len(received), device=trainer.student.device)))
            if first and (stop or done or trainer.step % recipe.checkpoint_interval == 0):
                trainer.save()
            advance(recipe.batch_tokens, f"KL {metrics['loss']:.4f}" if "loss" in metrics else "not finite, skipped")
            if stop and not done:
                note(f"Stopped and saved after step {trainer.step} of {recipe.total_steps}; run it again to go on.")
                raise Stopped


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that came while the block ran; the second of a kind has its usual effect at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what a signal does.
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _result(trainer: Trainer, start: dict[str, Any], output: Path, teacher_precision: str) -> DistillResult:
    before, after = trainer.curve[0], trainer.curve[-1]
    return DistillResult(
        output=output,
        recipe=trainer.recipe,
        teacher_precision=teacher_precision,
        steps=trainer.step,
        tokens=trainer.tokens,
        seconds=trainer.seconds,
        tokens_per_s=trainer.tokens / trainer.seconds,
        kl_before=before["kl"],
        kl_after=after["kl"],
        perplexity_before=before["perplexity"],
        perplexity_after=after["perplexity"],
        perplexity_teacher=start["perplexity_teacher"],
        drift=None if start["drift"] is None else Drift(**start["drift"]),
        curve=trainer.curve,
        losses=trainer.losses,
    )
