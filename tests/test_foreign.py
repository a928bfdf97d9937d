"""Failures of other libraries on a user's files."""

import errno

import pytest
from tokenizers import Tokenizer

from minitron.errors import MinitronError
from minitron.foreign import told


class PanicException(BaseException):
    """As pyo3 calls it: no Exception, and nowhere to be imported from."""


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("first\n  second\nthird"), "first second"),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError"),
        (OSError("no such model"), "no such model"),
        (Exception("from Rust"), "from Rust"),
        (PanicException("a bug in Rust"), "a bug in Rust"),
        (RuntimeError("x" * 1000), "x" * 200 + r"\.\.\."),
    ],
)
def test_what_a_library_raises_is_told_as_what_it_is(error: BaseException, why: str) -> None:
    with (
        pytest.raises(MinitronError, match=rf"^the file cannot be read \({why}\); copy it again\.$"),
        told("the file cannot be read", "copy it again"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MinitronError("our own"),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(3),
        OSError(errno.EIO, "broken", "x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_what_is_not_of_the_file_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as seen, told("the file cannot be read", "copy it again"):
        raise error
    assert seen.value is error


def test_tokenizers_raise_a_bare_exception() -> None:
    """Why every exception is caught."""
    with pytest.raises(Exception) as seen:
        Tokenizer.from_str("{}")
    assert type(seen.value) is Exception
