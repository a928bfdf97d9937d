"""Freed memory stays with the process, where the C library is glibc."""

import ctypes
import subprocess
import sys

import pytest

from minitron.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from minitron.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_memory_comes_from_the_system_once() -> None:
    found = {}
    for way in ("plain", "keep"):
        done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=False)
        if done.returncode == 3:
            pytest.skip("no glibc that sets thresholds so high")
        found[way] = int(done.stdout)
    # Ten times 64 MiB are 160 pages at least, were they huge.
    assert found["plain"] >= 160 and found["keep"] < found["plain"] / 10


@pytest.mark.parametrize("refused", [-1, -3])
def test_one_threshold_alone_is_not_enough(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            asked.append(option)
            return int(option != refused)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not keep_freed_memory()
    assert asked == ([-3] if refused == -3 else [-3, -1])


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked"))
    assert not keep_freed_memory()


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
