"""Progress is reported by callback, so that library code never prints."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called after `amount` more units are done; `note` is a short status such as `KL 0.412`."""

    def __call__(self, amount: float, note: str = "") -> None: ...


class Progress(Protocol):
    """Opens a progress bar of `total` units."""

    def __call__(self, description: str, total: float, unit: str) -> AbstractContextManager[Advance]: ...


Note = Callable[[str], None]
"""Called with a sentence for the user."""


@contextmanager
def silent(description: str, total: float, unit: str) -> Iterator[Advance]:
    """The default: no progress is shown."""

    def advance(amount: float, note: str = "") -> None:
        return

    yield advance


def no_note(text: str) -> None:
    """The default: notes are dropped."""
