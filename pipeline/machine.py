"""What this machine has: free memory and disk, and how fast it multiplies and reads, by a sample of a second."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron.locks import resolved

if TYPE_CHECKING:
    import torch

SECONDS: Final = 1.0
"""The longest that one sample takes, but for its first step."""

_TOKENS: Final = 256
_WIDEST: Final = 4096
_PIECE: Final = 2**23
_MOST_READ: Final = 2**28


def free_memory(device: torch.device) -> int:
    """Bytes that a program may still take on `device`."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` will stand."""
    place = resolved(path)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def flops(device: torch.device, dtype: torch.dtype, hidden: int) -> float:
    """Operations a second of matmuls as wide as a model's stream, measured for a second."""
    import torch

    width = min(hidden, _WIDEST)
    left = torch.ones(_TOKENS, width, dtype=dtype, device=device)
    weight = torch.ones(2 * width, width, dtype=dtype, device=device)

    def multiply() -> int:
        with torch.inference_mode():
            torch.nn.functional.linear(left, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return 2 * _TOKENS * width * 2 * width

    multiply()  # the first one also starts the device
    return _rate(multiply)


def reading(files: Iterable[Path]) -> float:
    """Bytes a second that the files are read at, from the beginning of the first."""
    first = next((path for path in files if path.is_file() and path.stat().st_size), None)
    if first is None:
        return float("inf")
    with first.open("rb") as file:
        return _rate(lambda: len(file.read(_PIECE)), _MOST_READ)


def _rate(step: Callable[[], int], most: float = float("inf")) -> float:
    started, done = time.perf_counter(), 0
    while (made := step()) and done + made <= most:
        done += made
        if time.perf_counter() - started > SECONDS:
            break
    return max(done, 1) / max(time.perf_counter() - started, 1e-9)
