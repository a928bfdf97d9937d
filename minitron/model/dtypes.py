"""The numbers in which a config says that a model is computed.

The command line's help reaches this module, so that it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DTYPE_KEYS: Final = ("dtype", "torch_dtype")
"""Where a config says in what numbers the model is computed, the newer key first."""

DTYPES: Final[Mapping[str, int]] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "uint8": 1,
    "int8": 1,
}
"""What may stand there, the names of torch -> the bytes of a number."""

DTYPE_ALIASES: Final = {"half": "float16", "float": "float32", "double": "float64"}
"""Other names that torch has for some of them."""


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config names; None where it names none."""
    return next((config[key] for key in DTYPE_KEYS if config.get(key)), None)
