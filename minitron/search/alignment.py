"""Widths that transformers can run in a mixture of experts: it multiplies all experts of a layer at once."""

from __future__ import annotations

from math import gcd
from typing import Final

from minitron.model.dims import numel
from minitron.model.dtypes import DTYPES, stated_dtype
from minitron.model.spec import ModelSpec

PIECE: Final = 16
"""The bytes of which every row that an expert multiplies must hold a whole number (torch.nn.functional.grouped_mm)."""

_UNTOLD: Final = 4
"""The bytes of a number where config.json names no dtype."""


def multiple_for_experts(spec: ModelSpec, key: str) -> int:
    """The number of which the size under a config key must stay a multiple for a layer's experts to be multiplied at
    once; 1 for widths that are no expert's, and for those of a model that cannot be run so as it is."""
    width = DTYPES.get(stated_dtype(spec.stated) or "", _UNTOLD)
    rows = {
        row
        for rules in spec.rules.values()
        for rule in rules
        if rule.per_expert and rule.is_linear
        # Those of the matrix, and those of what it is multiplied with.
        for row in (rule.matrix[-1], rule.reads)
        if row is not None
    }
    found = 1
    for row in rows:
        whole = numel(row, spec.sizes) * width
        more = numel(row, {**spec.sizes, **{axis: spec.sizes[axis] + 1 for axis in spec.keys[key]}}) * width
        if more != whole and whole % PIECE == 0:
            found = max(found, PIECE // gcd(PIECE, more - whole))
    return found
