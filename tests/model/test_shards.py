"""Shards and slabs: byte for byte what safetensors writes, and nothing that was not promised."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from minitron.errors import MinitronError
from minitron.model import slabs
from minitron.model.headers import read_headers
from minitron.model.shards import Entry, ShardWriter
from minitron.model.slabs import Slab, dtypes, read_ahead, read_rows

NAMES = {dtype: name for name, dtype in dtypes().items()}


def entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, NAMES[tensor.dtype], tuple(tensor.shape))


def write(folder: Path, tensors: Mapping[str, Tensor], **options: int) -> ShardWriter:
    folder.mkdir()
    with ShardWriter(folder, [entry(*item) for item in tensors.items()], **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return writer


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(shape).numel() * dtype.itemsize
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.uint8).view(dtype).reshape(shape)


def test_a_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        f"{name} of {letter}": random(3, 8, dtype=dtype, seed=seed)
        for seed, (name, dtype) in enumerate(dtypes().items())
        for letter in "ba"
        if name != "F4"
    }
    tensors |= {
        'a "quoted" \u00e9\u4e2d\U0001f600\\ name': random(4),
        "a number": random(dtype=torch.bfloat16),
        "nothing": random(0, 3),
    }
    writer = write(tmp_path / "out", tensors)
    assert (tmp_path / "out/model.safetensors").read_bytes() == save(tensors, {"format": "pt"})
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    assert writer.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert writer.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    for name, header in read_headers(tmp_path / "out/model.safetensors").items():
        read = read_rows(header)
        assert (read.dtype, read.shape) == (tensors[name].dtype, tensors[name].shape)
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8))


def test_numbers_of_four_bits_keep_their_shape(tmp_path: Path) -> None:
    two = random(2, 3, dtype=torch.uint8).view(dtypes()["F4"])
    (tmp_path / "model.safetensors").write_bytes(save({"x": two}))
    header = read_headers(tmp_path / "model.safetensors")["x"]
    assert header.shape == (2, 6)
    assert read_rows(header, 1, 2).shape == (1, 3)
    (tmp_path / "out").mkdir()
    with ShardWriter(tmp_path / "out", [Entry.of("x", header)]) as writer:
        writer.add("x", read_rows(header))
    assert (tmp_path / "out/model.safetensors").read_bytes() == save({"x": two}, {"format": "pt"})


def test_shards_fill_in_the_order_of_the_tensors(tmp_path: Path) -> None:
    sizes = {"d": 5, "a": 4, "c": 30, "b": 1, "e": 9}
    tensors = {name: random(size, seed=size) for name, size in sizes.items()}
    write(tmp_path / "out", tensors, shard_bytes=40)  # ten numbers
    shards = [["d", "a"], ["c"], ["b", "e"]]
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for file, names in zip(files, shards, strict=True):
        assert (tmp_path / "out" / file).read_bytes() == save({name: tensors[name] for name in names}, {"format": "pt"})
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 4 * sum(sizes.values())},
        "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
    }
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_tensor_comes_in_runs_of_rows(tmp_path: Path) -> None:
    tensors = {"one": random(7, 3, 2), "two": random(5, 2, seed=1)}
    (tmp_path / "out").mkdir()
    with ShardWriter(tmp_path / "out", [entry(*item) for item in tensors.items()]) as writer:
        for rows in tensors["one"].split(3):
            writer.add("one", rows)
        writer.add("two", tensors["two"][:, :].T.contiguous().T)
        writer.add("one", tensors["one"][7:])
    assert (tmp_path / "out/model.safetensors").read_bytes() == save(tensors, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("other", torch.zeros(2, 3), "nothing of that name"),
        ("x", torch.zeros(2, 4), r"is torch.float32 \[2, 4\], promised was"),
        ("x", torch.zeros(3, 3), "promised was"),
        ("x", torch.zeros(2, 3, dtype=torch.bfloat16), "promised was"),
        ("x", torch.zeros(6), "promised was"),
        ("x", torch.zeros(1, 3), "12 bytes came of 24"),
    ],
)
def test_what_was_not_promised_is_not_written(tmp_path: Path, name: str, tensor: Tensor, why: str) -> None:
    with (
        pytest.raises(RuntimeError, match=why),
        ShardWriter(tmp_path, [Entry("x", "F32", (2, 3))]) as writer,
    ):
        writer.add(name, tensor)
    with pytest.raises(ValueError, match="two tensors of one name"):
        ShardWriter(tmp_path, [Entry("x", "F32", (2, 3))] * 2)


def test_files_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out", {"x": random(4)})
    finally:
        os.umask(before)
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o640


def test_rows_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(save({"x": random(9, 4, dtype=torch.bfloat16), "y": random(3)}))
    headers = read_headers(file)
    with safe_open(file, "pt") as stream:
        part = stream.get_slice("x")[2:7]
        assert torch.equal(read_rows(headers["x"], 2, 7).view(torch.uint8), part.contiguous().view(torch.uint8))
        assert torch.equal(read_rows(headers["y"]), stream.get_tensor("y"))


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(save({"x": random(9, 4)}))
    header = read_headers(file)["x"]
    os.truncate(file, file.stat().st_size - 20)
    assert read_rows(header, 0, 7).shape == (7, 4)
    with pytest.raises(MinitronError, match="became shorter while it was read"):
        read_rows(header)


def test_reading_goes_ahead_no_further_than_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "AHEAD_BYTES", 10)
    read: list[int] = []

    def slab(number: int, size: int) -> Slab:
        return Slab(str(number), 0, size, lambda: read.append(number) or torch.tensor(number))

    sizes = [4, 4, 4, 30, 2, 2, 9]
    seen = []
    for one, rows in read_ahead(slab(number, size) for number, size in enumerate(sizes)):
        seen.append(int(rows))
        ahead = [sizes[number] for number in read if number not in seen]
        assert sum(ahead) <= 10 or len(ahead) == 1, one
    assert seen == list(range(7))


def test_an_error_in_reading_reaches_the_one_who_waits() -> None:
    def fail() -> Tensor:
        raise MinitronError("no such rows")

    good = Slab("good", 0, 1, lambda: torch.zeros(1))
    found = read_ahead([good, Slab("bad", 0, 1, fail), good])
    assert next(found)[0] is good
    with pytest.raises(MinitronError, match="no such rows"):
        next(found)
