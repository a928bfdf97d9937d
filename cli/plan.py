"""`minitron plan`."""

from minitron.errors import MinitronError


def command() -> None:
    """Not built yet."""
    raise MinitronError("`minitron plan` is not built yet.")
