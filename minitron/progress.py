"""How long work tells of itself: a seam, so that no room below `cli/` draws on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Says that `amount` more units are done; `note` is a short word on the state, such as `KL 0.412`."""

    def __call__(self, amount: float, note: str = "") -> None: ...


class Progress(Protocol):
    """Opens one bar of `total` units; rate and time left are the bar's own business."""

    def __call__(self, description: str, total: float, unit: str) -> AbstractContextManager[Advance]: ...


Note = Callable[[str], None]
"""Says a sentence to whoever watches."""


@contextmanager
def silent(description: str, total: float, unit: str) -> Iterator[Advance]:
    """The progress of callers that want none."""

    def advance(amount: float, note: str = "") -> None:
        return

    yield advance


def no_note(text: str) -> None:
    """The note of callers that want none."""
