"""The training loop: steps until the recipe is done, with validations, checkpoints and signals between them."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import psutil
import torch

from distill.policy.endpoint import EndpointError
from distill.run.tasks import figures
from distill.run.trackers import Send
from distill.run.trainer import Trainer
from minitron.progress import Progress
from minitron.units import format_bytes

Track = Callable[[int], AbstractContextManager[Send]]
"""(steps done before) -> where figures are sent until the block ends."""


class Stopped(KeyboardInterrupt):
    """A signal came, and the step in hand was finished and saved."""


def train(trainer: Trainer, progress: Progress, note: Callable[[str], None], track: Track) -> None:
    """Step until the recipe is done; validate, save and stop in between as it says.  Raises Stopped."""
    recipe, work, first = trainer.recipe, trainer.work, trainer.processes.is_first
    with (
        progress("distilling", recipe.total_tokens - trainer.tokens, "tokens") as advance,
        track(trainer.step) as send,
        _signals() as received,
    ):
        while not trainer.is_done:
            metrics = _step(trainer)
            while trainer.remarks:
                note(trainer.remarks.pop(0))
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
                    f"Stopped early after step {trainer.step} of {recipe.total_steps}: "
                    f"{recipe.patience} validations in a row were no better than at step "
                    f"{trainer.best['step']:,}."
                )
            if stop and not done:
                note(f"Stopped and saved after step {trainer.step} of {recipe.total_steps}; run it again to resume.")
                raise Stopped


def _step(trainer: Trainer) -> dict[str, Any]:
    """One step; where an endpoint gives no answers the steps before it are saved."""
    try:
        return trainer.train_step()
    except EndpointError:
        if trainer.step and trainer.processes.world_size == 1:
            trainer.save()
            trainer.checkpoints.settle()
        raise


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
