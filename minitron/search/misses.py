"""Misses: why no architecture of a lattice fits, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from minitron.memory.budget import Budget
from minitron.search.candidate import Candidate
from minitron.search.gauge import broken
from minitron.units import format_bytes


def broken_limits(nearest: Candidate, limits: Mapping[str, float], searched: int) -> str:
    """Why nothing keeps all of several limits: by how much the nearest candidate breaks which."""
    clauses = broken(limits, nearest.measures)
    which = "the only candidate" if searched == 1 else f"the nearest of {searched:,} candidates"
    return (
        f"nothing keeps all limits: {which} {', and '.join(clauses)}; prune more with --lattice, --most or --layers, "
        "or loosen a limit."
    )


def too_large(smallest: Candidate, budget: Budget, searched: int) -> str:
    """Why nothing fits: what the smallest candidate lacks."""
    need = smallest.footprint
    term = max(need.lines, key=lambda name: need.lines[name])
    which = "the only candidate" if searched == 1 else f"the smallest of {searched:,} candidates"
    return (
        f"nothing fits into {format_bytes(budget.available)}: {which} needs "
        f"{format_bytes(need.total)}, {format_bytes(need.total - budget.available)} too much "
        f"(the largest part: {term.replace('_', ' ')}, {format_bytes(need.lines[term])}); prune more with "
        "--lattice or --layers, or use a shorter context, a smaller batch, smaller number formats or "
        "a larger GPU."
    )
