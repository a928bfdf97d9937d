"""Thinning: wider steps for a lattice that nobody named and that would be too large to look through.

Every axis multiplies the points of a lattice.  Where they are too many, the axis with the most sizes is searched in
twice the steps, again and again: what is lost is how finely the budget is filled, which the other axes do as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Final

from minitron.search.search_steps import Choice

MOST: Final = 2**23
"""Points of a lattice that nobody named: a second at eight million a second."""

_FEWEST: Final = 3
"""Sizes that each axis keeps: its own, the smallest and one between them."""


def thinned(
    widths: Mapping[str, tuple[Choice, ...]], depths: int, asked: Collection[str] = (), most: int = MOST
) -> dict[str, tuple[Choice, ...]]:
    """The sizes of each axis, descending, of which so many go that with `depths` depths at most `most` points are left
    or every axis has few: every second size of the axis that has the most, but for its largest and its smallest.  Of
    equal ones the last axis is thinned first.  Axes that somebody `asked` for stay as they are."""
    found = dict(widths)
    while depths * prod(len(sizes) for sizes in found.values()) > most:
        free = [key for key, sizes in reversed(found.items()) if key not in asked and len(sizes) > _FEWEST]
        if not free:
            break
        key = max(free, key=lambda key: len(found[key]))
        sizes = found[key]
        found[key] = tuple(dict.fromkeys((*sizes[::2], sizes[-1])))
    return found
