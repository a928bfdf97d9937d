"""`minitron prune`."""

from minitron.errors import MinitronError


def command() -> None:
    """Not built yet."""
    raise MinitronError("`minitron prune` is not built yet.")
