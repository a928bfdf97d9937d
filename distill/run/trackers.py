"""Experiment trackers that metrics are sent to, besides metrics.jsonl: one function per service."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError

Send = Callable[[int, Mapping[str, float]], None]
"""Is told a step's number and its figures by name."""


@contextmanager
def tensorboard(output: Path, settings: Mapping[str, Any], step: int) -> Iterator[Send]:
    """Event files in the folder OUTPUT.tensorboard; what an earlier run wrote after `step` is purged."""
    _wanted("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    folder = str(output.with_name(f"{output.name}.tensorboard"))
    with SummaryWriter(folder, purge_step=step + 1 if step else None) as writer:

        def send(at: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, at)

        yield send


def wandb(output: Path, settings: Mapping[str, Any], step: int) -> AbstractContextManager[Send]:
    """Weights & Biases, project `minitron`, under the output's name."""
    return _service("wandb", output, settings)


def trackio(output: Path, settings: Mapping[str, Any], step: int) -> AbstractContextManager[Send]:
    """Trackio, project `minitron`, under the output's name."""
    return _service("trackio", output, settings)


@contextmanager
def _service(name: str, output: Path, settings: Mapping[str, Any]) -> Iterator[Send]:
    """Both have wandb's functions.  A run that stopped is gone on with where the service knows its name."""
    service = _wanted(name, name)
    # Another run of the same name, elsewhere or of another recipe, is another run.
    own = json.dumps([str(output.resolve()), dict(settings)], sort_keys=True)
    more = {"id": hashlib.sha256(own.encode()).hexdigest()[:16]} if name == "wandb" else {}
    # They greet on stdout, where a command's results go.
    with redirect_stdout(sys.stderr):
        service.init(project="minitron", name=output.name, config=dict(settings), resume="allow", **more)
    try:
        yield lambda at, figures: service.log(dict(figures), step=at)
    finally:
        with redirect_stdout(sys.stderr):
            service.finish()


@contextmanager
def nowhere(output: Path, settings: Mapping[str, Any], step: int) -> Iterator[Send]:
    """For a run that nobody tracks."""
    yield lambda at, figures: None


def _wanted(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MinitronError(
            f"--track {module} needs a package that is not installed; run pip install {package}."
        ) from None


TRACKERS: Final[dict[str, Callable[[Path, Mapping[str, Any], int], AbstractContextManager[Send]]]] = {
    "none": nowhere,
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
}
"""(output, settings of the run, steps done before) -> where figures go until the block ends."""


def require_tracker(name: str) -> None:
    """Raise MinitronError unless TRACKERS knows the name and its package is installed."""
    if name not in TRACKERS:
        raise MinitronError(f"there is no tracker {name!r}; choose one of {', '.join(TRACKERS)}.")
    if name != "none":
        _wanted(name, name)
