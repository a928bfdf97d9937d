"""`minitron compress`."""

from minitron.errors import MinitronError


def command() -> None:
    """Not built yet."""
    raise MinitronError("`minitron compress` is not built yet.")
