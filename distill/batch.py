"""The tokens of an optimiser step where none are asked for."""

from __future__ import annotations

import os
from typing import Final

SHORT: Final = 2**20
"""Tokens of a run in which small steps were measured to end lowest (benchmarks/RESULTS.md, "Ways to train")."""

SMALL: Final = 1024
LARGE: Final = 4096


def usual_batch(tokens: int | None, steps: int | None, sequence_length: int) -> int:
    """Tokens of a step in a run of so many tokens or steps: SMALL in a short one, else LARGE, in whole sequences: the
    same number of them, at least one, for every process that torchrun started."""
    whole = tokens if tokens is not None else (steps or 0) * SMALL
    sequences = (SMALL if whole <= SHORT else LARGE) // sequence_length
    # What torch.distributed.is_torchelastic_launched looks at, without torch: others set WORLD_SIZE too.
    processes = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return max(1, -(-sequences // processes)) * processes * sequence_length
