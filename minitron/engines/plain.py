"""No engine: what layers keep, added up, nothing rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minitron.engines.keeping import Demand, Kept
from minitron.model.spec import ModelSpec
from minitron.units import GiB

UTILIZATION: Final = 0.95
"""The share of a GPU that a budget takes where nobody says otherwise: the rest is the driver's and the allocator's."""

WORKSPACE: Final = round(0.65 * GiB)
"""Activations and buffers where nobody says otherwise: an estimate, in the middle of the 0.5 to 0.8 GiB that make the
published choice of Nemotron Nano 2 come out.  Engines report 0.8 to 2.5 GiB at their default batch sizes."""


def lines(demand: Demand, keep: Kept) -> dict[str, Any]:
    """Lines of the footprint: caches and states of all sequences, a state for every drafted token."""
    sequences = demand.batch * (1 + demand.speculative_tokens)
    return {
        "kv_cache": keep.kv_bytes * demand.batch,
        "conv_state": keep.conv_bytes * sequences,
        "ssm_state": keep.state_bytes * sequences,
    }


def workspace(spec: ModelSpec, demand: Demand, whole: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """Bytes of activations and buffers."""
    return WORKSPACE


def tell_workspace(spec: ModelSpec, demand: Demand, local: Mapping[str, Any], found: Any) -> tuple[str, str, str]:
    """Formula, the formula with its numbers, and where they come from."""
    note = "the middle of the range, 0.5 to 0.8 GiB, that reproduces the published choice of Nemotron Nano 2"
    return "activations and buffers", f"{int(found):,} B", note
