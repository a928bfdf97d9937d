"""`minitron inspect`."""

from minitron.errors import MinitronError


def command() -> None:
    """Not built yet."""
    raise MinitronError("`minitron inspect` is not built yet.")
