"""Distillation as a whole: two checkpoints, a text and a recipe in, a trained checkpoint out."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from distill.card import model_card
from distill.checkpoints import read_weights
from distill.data import Text, read_text
from distill.drift import Drift
from distill.fp8 import DEFAULT, Kept
from distill.mtp import PREFIX, Predictor
from distill.output import write_student
from distill.processes import Processes
from distill.recipe import Recipe
from distill.records import Source
from distill.request import Request, beside
from distill.tasks import asker, figures
from distill.teaching import Teaching
from distill.trackers import TRACKERS, Send, require_tracker
from distill.trainer import Trainer
from distill.work import Work
from minitron.errors import MinitronError
from minitron.loading import find_device, load_model, load_tokenizer
from minitron.progress import Progress, silent
from minitron.report_training import training_document
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
    """Of the weights written."""

    perplexity_before: float
    perplexity_after: float
    perplexity_teacher: float
    """The teacher's, as it was kept."""

    drift: Drift | None
    """How far the teacher was from itself in bf16; None where it was in bf16."""

    curve: list[dict[str, Any]]
    """Every validation: step, tokens, kl, perplexity, top1_agreement; `tasks` where there are some."""

    losses: list[float]
    """The training loss of every step; nan where it was not finite and the step was skipped."""

    selected_step: int
    """After which of the steps the weights written are."""

    @property
    def selected(self) -> dict[str, Any]:
        """The validation of the weights written."""
        return next(point for point in self.curve if point["step"] == self.selected_step)

    @property
    def skipped(self) -> int:
        """Steps that were skipped."""
        return sum(math.isnan(loss) for loss in self.losses)

    def to_json(self) -> dict[str, Any]:
        """The results of the command: all fields but the inputs and the losses of single steps."""
        fields = {name: value for name, value in vars(self).items() if name not in ("output", "recipe", "losses")}
        return fields | {"skipped_steps": self.skipped, "drift": None if self.drift is None else asdict(self.drift)}


Track = Callable[[int], AbstractContextManager[Send]]
"""(steps done before) -> where figures are sent until the block ends."""


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
    of them.  `track` is a name of distill.trackers.TRACKERS, which knows the run by the name of
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
    _train(
        trainer,
        progress,
        note,
        partial(TRACKERS[track if processes.is_first else "none"], tracked or output, recipe.to_json()),
    )
    result = _result(trainer, start, output, teacher_precision)
    if processes.is_first:
        # The output comes last: where it is there, all is.
        for point, folder in reversed(_written(trainer, output)):
            step = int(point["step"])
            written = replace(result, selected_step=step)
            whole, trained_mtp = _weights_of(trainer, step, student)
            write_student(
                whole,
                student,
                folder,
                mtp=trained_mtp,
                card=model_card(origin or student, teacher, text.source, written, earlier),
                training=training_document(written.to_json(), written.losses),
                overwrite=overwrite,
            )
            if folder != output:
                note(f"Written beside it: {folder}, the student after step {step:,}, KL {point['kl']:.4f}.")
        work_folder.close()
    processes.wait()
    return result


def _written(trainer: Trainer, output: Path) -> list[tuple[dict[str, Any], Path]]:
    """(validation, folder) of the weights to write: those selected, and the others where they differ."""
    last, best = trainer.curve[-1], trainer.best
    chosen, other = (best, last) if trainer.recipe.select == "best" else (last, best)
    found = [(chosen, output)]
    return found if chosen["step"] == other["step"] else [*found, (other, beside(output, trainer.recipe))]


def _weights_of(trainer: Trainer, step: int, folder: Path) -> tuple[PreTrainedModel, Predictor | None]:
    """The student of `folder` and its multi-token-prediction block, where that was trained, as they were after a step,
    the last one's or the best one's, in one piece."""
    if step != trainer.step:
        weights = trainer.checkpoints.best_weights(step)
    elif trainer.processes.world_size == 1:
        return trainer.student, trainer.objective.mtp
    else:
        newest = trainer.checkpoints.newest()
        assert newest is not None  # the last step is always saved
        weights = read_weights(newest)
    whole = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    mtp = None if trainer.objective.mtp is None else Predictor(folder, whole)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(weights[name])
        for name, parameter in () if mtp is None else mtp.named_parameters():
            parameter.copy_(weights[f"{PREFIX}{name}"])
    return whole, mtp


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


def _train(trainer: Trainer, progress: Progress, note: Callable[[str], None], track: Track) -> None:
    """Step until the recipe is done; validate, save and stop in between as it says.  Raises Stopped."""
    recipe, work, first = trainer.recipe, trainer.work, trainer.processes.is_first
    with (
        progress("distilling", recipe.total_tokens - trainer.tokens, "tokens") as advance,
        track(trainer.step) as send,
        _signals() as received,
    ):
        while not trainer.is_done:
            metrics = trainer.train_step()
            if first:
                work.append_metrics(**metrics, seconds=trainer.seconds)
                send(trainer.step, {f"train/{name}": value for name, value in metrics.items() if name != "step"})
            if trainer.step == recipe.total_steps or trainer.step % recipe.validation_interval == 0:
                point = trainer.validate()
                trainer.keep_best()
                if first:
                    work.append_metrics(step=trainer.step, validation=point)
                    send(trainer.step, {f"held-out/{name}": value for name, value in figures(point).items()})
            done = trainer.is_done
            stop = bool(trainer.processes.sum(torch.tensor(len(received), device=trainer.student.device)))
            trainer.checkpoints.settle(wait=False)
            if stop or done or trainer.step % recipe.checkpoint_interval == 0:
                trainer.save()
            if stop or done:
                trainer.checkpoints.settle()
            advance(recipe.batch_tokens, _told(trainer, metrics))
            if done and trainer.step < recipe.total_steps:
                note(
                    f"Ended after step {trainer.step} of {recipe.total_steps}: {recipe.patience} validations in a row "
                    f"were no better than that of step {trainer.best['step']:,}."
                )
            if stop and not done:
                note(f"Stopped and saved after step {trainer.step} of {recipe.total_steps}; run it again to go on.")
                raise Stopped


def _told(trainer: Trainer, metrics: Mapping[str, Any]) -> str:
    """What the progress bar says of a step."""
    loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else "not finite, skipped"
    point, device = trainer.curve[-1], trainer.student.device
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return f"{loss}; held-out KL {point['kl']:.4f}, agreement {point['top1_agreement']:.1%}; {format_bytes(used)}"


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
    before, after = trainer.curve[0], _written(trainer, output)[0][0]
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
        selected_step=int(after["step"]),
    )
