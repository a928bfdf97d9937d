"""Numbers in a config that sizes are multiplied or divided by."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Config, shown

_LARGEST: Final = 2**20


def positive(key: str, value: Any, what: str = "it must be") -> float:
    """A number above 0 that a config gives under `key`; raises MinitronError for anything else.  `what` stands before
    what it should be."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number of any size is an int, of which floats know no square root and no infinity.
    if not is_number or not -(2**63) < value < 2**63 or not isfinite(value) or value <= 0:
        raise MinitronError(f"config.json: {key} is {shown(value)}; {what} a positive number.")
    return float(value)


def factor_of(config: Config, key: str, default: float) -> float:
    """The factor under `key`, by which a size is multiplied or divided."""
    factor = positive(key, config.get(key, default))
    if not 1 / _LARGEST <= factor <= _LARGEST:
        raise MinitronError(f"config.json: {key} is {shown(factor)}, which no model has; correct it.")
    return factor
