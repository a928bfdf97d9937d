"""Files that are filled: the same bytes whichever way they take to the disk."""

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from minitron.model import filling
from minitron.model.filling import Filling, is_passing


def pieces(size: int, seed: int) -> list[tuple[int, bytes]]:
    """A file's bytes cut anywhere, in any order; some cuts are on a block's border."""
    rng = np.random.default_rng(seed)
    cuts = sorted({0, size, *rng.integers(0, size, 6).tolist(), *(4096 * rng.integers(0, size // 4096, 6)).tolist()})
    found = [(start, rng.bytes(stop - start)) for start, stop in itertools.pairwise(cuts)]
    rng.shuffle(found)
    return found


def whole(found: list[tuple[int, bytes]]) -> bytes:
    return b"".join(data for _, data in sorted(found))


def fill(path: Path, found: list[tuple[int, bytes]]) -> None:
    file = Filling(path, passing=True)
    for place, data in found:
        file.put(place, memoryview(data))
    file.close()


def can_pass(folder: Path) -> bool:
    file = Filling(folder / "tried", passing=True)
    file.put(0, memoryview(bytes(2**13)))
    passing = file.is_direct
    file.abandon()
    return passing


@pytest.mark.parametrize("seed", range(20))
def test_a_file_is_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(filling, "_BUFFER_BYTES", 2**14)
    found = pieces(200_000, seed)
    fill(tmp_path / "file", found)
    assert (tmp_path / "file").read_bytes() == whole(found)


def test_whole_blocks_alone_go_past_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_pass(tmp_path):
        pytest.skip("this file system has no direct writing")
    seen: list[tuple[int, int]] = []
    put = os.pwrite

    def write(number: int, data: memoryview, place: int) -> int:
        seen.append((place, len(data)))
        return put(number, data, place)

    monkeypatch.setattr(os, "pwrite", write)
    file = Filling(tmp_path / "file", passing=True)
    file.put(100, memoryview(bytes(3 * 4096)))
    file.close()
    assert seen == [(100, 3996), (4096, 2 * 4096), (3 * 4096, 100)]


@pytest.mark.parametrize("refusing", ["open", "write"])
def test_a_file_system_without_direct_writing_gets_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    put, opened = os.pwrite, os.open
    direct: set[int] = set()

    def open_file(path: Path, flags: int) -> int:
        if refusing == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        number = opened(path, os.O_WRONLY)
        direct.add(number)
        return number

    def write(number: int, data: memoryview, place: int) -> int:
        if number in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return put(number, data, place)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "pwrite", write)
    found = pieces(100_000, 1)
    fill(tmp_path / "file", found)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == whole(found)
    assert bool(direct) == (refusing == "write")


def test_a_disk_that_takes_less_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, place: put(number, data[: max(1, len(data) // 2)], place))
    found = pieces(100_000, 2)
    fill(tmp_path / "file", found)
    assert (tmp_path / "file").read_bytes() == whole(found)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(number: int, data: memoryview, place: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", write)
    file = Filling(tmp_path / "file", passing=True)
    with pytest.raises(OSError, match=r"No space left on device.*file"):
        file.put(0, memoryview(bytes(2**14)))
    file.abandon()


def test_small_files_stay_in_the_memory_of_the_system(tmp_path: Path) -> None:
    assert not is_passing(2**20)
    file = Filling(tmp_path / "file", passing=is_passing(2**20))
    assert not file.is_direct
    file.abandon()
