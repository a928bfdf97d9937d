"""What the command line says of the system's failures and of memory, which a user can mend, and at what length."""

import errno
import os
import re
from collections.abc import Mapping
from typing import Final

LONGEST: Final = 480
"""Characters of a message, whose remedy stands at its end."""

_TAIL: Final = 180

_ANOTHER: Final = "choose another place"

_CAUSES: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.EACCES: ("it may not be read or written", f"change its permissions, or {_ANOTHER}"),
    errno.EPERM: ("it may not be read or written", f"change its permissions, or {_ANOTHER}"),
    errno.EROFS: ("it is on a read-only file system", _ANOTHER),
    errno.EEXIST: ("it stands in the way of what is to be written", f"move it, or {_ANOTHER}"),
    errno.ENOTDIR: ("a part of the path is a file and not a folder", f"correct the path, or {_ANOTHER}"),
    errno.EISDIR: ("it is a folder and not a file", "correct the path"),
    errno.ENOTEMPTY: ("it is not empty", f"move it, or {_ANOTHER}"),
    errno.ELOOP: ("its symbolic links lead in a circle", "correct them"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EIO: ("the disk or the system cannot read or write it", "copy it again, or check the disk"),
    errno.ESTALE: ("its file system is no longer there", "mount it again"),
    errno.ETXTBSY: ("it is in use", "stop what uses it"),
    errno.EBUSY: ("it is in use", "stop what uses it"),
    errno.EINVAL: ("the system cannot read or write it", _ANOTHER),
    errno.ENODEV: ("it cannot be mapped into memory", "give a file on a disk"),
    errno.ENXIO: ("it is no file", "give a file on a disk"),
    errno.EXDEV: ("it is on another file system than what it replaces", _ANOTHER),
    errno.EFBIG: ("its file system takes no file so large", _ANOTHER),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
    errno.ENFILE: ("too many files are open on this machine", "stop what opens them"),
}
"""The system's number of an error -> what is wrong with the path, and what to do."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_OUT_OF_MEMORY: Final = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory", re.IGNORECASE)


def told_of(error: BaseException) -> str | None:
    """One sentence for a failure that a user can mend; None for any other."""
    number = _number(error)
    path = str(error.filename) if isinstance(error, OSError) and error.filename else ""
    if number in _FULL or _is_short_write(error):
        place = f" ({path})" if path else ""
        return f"the disk is full{place}; free some space or choose another output."
    if number == errno.ENOMEM or isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "the memory of this machine is not enough; stop what else uses it, or ask for less at a time."
    if type(error).__name__ == "LinAlgError":  # numpy's and torch's, which are not imported for this
        return f"a matrix of the scores or weights cannot be solved for ({error}); score the model again."
    if number is not None and number in _CAUSES:
        cause, remedy = _CAUSES[number]
        return f"{path or 'a file'}: {cause}; {remedy}."
    if path and number is not None:
        return f"{path}: {os.strerror(number)}; check the path and its file system."
    return None


def _number(error: BaseException) -> int | None:
    """The system's number of what went wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # Libraries written in Rust, safetensors among them, wrap the system's error in one of their own.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])


def _is_short_write(error: BaseException) -> bool:
    # What numpy says, without the system's number, when fewer bytes were taken than it had.
    return isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)) is not None


def shortened(line: str) -> str:
    """A line of at most LONGEST characters: of a longer one the middle is left out."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - _TAIL - 5]} ... {line[-_TAIL:]}"
