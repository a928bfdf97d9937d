"""Allocator settings for training on a CPU and for cutting files: freed memory is kept for what comes next.

glibc gives blocks of megabytes back to the system at once and asks for them again in the next layer or the next rows,
where every page is zeroed: a seventh of a step's time on a CPU, a third of the system's time in cutting
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""mallopt(3)'s M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""

_NEVER: Final = -1
_LARGEST: Final = 2**30
"""Bytes; larger blocks still come from the system and go back to it."""


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep for this process what it frees, from now on; returns whether it does, which it does not
    where there is no glibc, or one that sets no threshold so high."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The threshold comes first: setting the other alone would hand out every block of 128 KiB by a call to the system.
    return bool(mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
