"""`minitron eval`."""

from minitron.errors import MinitronError


def command() -> None:
    """Not built yet."""
    raise MinitronError("`minitron eval` is not built yet.")
