"""Failures of other libraries on a user's files, told as what they are.

transformers and tokenizers check little of what they read and raise whatever they fall over: any exception of Python's,
a bare Exception from Rust, a panic of Rust that is a BaseException.  Where they read a user's file, and only there, all
of that means that the file is not what it should be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from minitron.errors import MinitronError


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into a MinitronError: `what` cannot be done (why); `remedy`.

    What is not of the file passes: our own errors, a lack of memory, the system's errors, an interruption."""
    try:
        yield
    except (MinitronError, MemoryError):
        raise
    except OSError as error:
        # transformers raises OSErrors of its own, without the system's number.
        if error.errno is not None:
            raise
        raise MinitronError(f"{what} ({why(error)}); {remedy}.") from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise
        raise MinitronError(f"{what} ({why(error)}); {remedy}.") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise MinitronError(f"{what} ({why(error)}); {remedy}.") from error


@contextmanager
def silenced() -> Iterator[None]:
    """What libraries in Rust and C print in the block, past Python, goes nowhere: it would stand among the results,
    with names from a file as they are."""
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        nothing = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nothing)
        for number in (1, 2):
            with suppress(OSError):  # closed by whoever started us
                kept = os.dup(number)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, number)
                os.dup2(nothing, number)
        yield


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has given up: the class cannot be imported."""
    return type(error).__name__ == "PanicException"


def why(error: BaseException, longest: int = 200) -> str:
    """What an exception says, on one line."""
    # The first line of a validation error names the field and the second what is wrong with it.
    lines = [line.strip() for line in str(error).strip().splitlines()[:2]]
    text = " ".join(" ".join(lines).split())
    # A key alone, or nothing, says little.
    said = text if text and not isinstance(error, LookupError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return said if len(said) <= longest else f"{said[:longest]}..."
