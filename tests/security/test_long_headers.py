"""A header that is longer than safetensors reads is refused before it is read, and says so."""

import shutil
import struct
from pathlib import Path

import pytest

from minitron.errors import MinitronError
from minitron.model.headers import LONGEST, read_headers
from minitron.model.loading import load_model


@pytest.mark.parametrize("length", [LONGEST + 1, 2**40, 2**64 - 1])
def test_it_is_refused_by_its_first_bytes(length: int, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length) + b'{"a":')
        file.truncate(8 + min(length, 2 * LONGEST))  # a hole: nothing is written, and nothing may be read of it
    for read in (lambda: read_headers(folder / "model.safetensors"), lambda: load_model(folder)):
        with pytest.raises(MinitronError, match=rf"its header has {length:,} bytes, and safetensors reads 100,000,000"):
            read()
