"""The tensors of a GGUF file, one at a time, from the converter's lazy ones to ggml's blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.gguf.extra import quiet, writer
from minitron.gguf.rows import quantised
from minitron.memory.ggml import TYPES, Facts, Mixture, Place, fitted, role_of
from minitron.memory.gguf import part_of
from minitron.progress import Progress

_ROWS_BYTES: Final = 64 * 2**20
"""Of the fp32 rows that are quantised at once."""

_KEPT: Final = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "shortconv.conv.weight")
"""What the name of a matrix holds that llama.cpp's quantiser leaves as it is."""


@dataclass(frozen=True)
class Typed:
    """A tensor of a GGUF file and the type it is written in."""

    name: str
    shape: tuple[int, ...]
    """Rows before columns, as numpy has them."""

    type: str
    quantised: bool
    """Whether the mixture chose the type."""

    @property
    def num_bytes(self) -> int:
        """In the file, without padding."""
        *rows, columns = 1, *self.shape
        return int(TYPES[self.type].layout.matrix(prod(rows), columns))


def typed(
    tensors: Mapping[str, Any], mixture: Mixture, facts: Facts, own_types: Mapping[str, str] | None = None
) -> list[Typed]:
    """The types of all tensors of the converter's `tensors` (name -> its TensorInfo), in the order of llama.cpp: layer
    by layer, then by name; `own_types` is component -> the type of its matrices."""
    gguf, seen = writer(), Counter[str]()
    named = {kind.value: kind.name.lower() for kind in gguf.GGMLQuantizationType}
    found = []
    for name in sorted(tensors, key=lambda name: (layer_of(name), name)):
        shape, own = tuple(int(size) for size in tensors[name].shape), named[int(tensors[name].dtype)]
        kept = (own_types or {}).get(part_of(name))
        if not _may_be_quantised(name, shape) or (kept is None and not TYPES[mixture.most].instead):
            found.append(Typed(name, shape, own, False))
            continue
        role = role_of(name)
        place = Place(role, max(layer_of(name), 0), seen[role])
        seen[role] += 1
        kind = mixture.type_of(place, facts, shape[-1]) if kept is None else fitted(kept, shape[-1])
        found.append(Typed(name, shape, kind, True))
    return found


def layer_of(name: str) -> int:
    """The layer in the name of a tensor, -1 where there is none."""
    match = re.match(r"blk\.(\d+)\.", name)
    return -1 if match is None else int(match[1])


def _may_be_quantised(name: str, shape: tuple[int, ...]) -> bool:
    # As ggml counts dimensions: those of 1 behind the last larger one are none.
    wide = sum(size > 1 for size in shape[:-1]) > 0
    return wide and name.endswith("weight") and not any(part in name for part in _KEPT)


def write(
    header: Any, types: list[Typed], importance: Mapping[str, NDArray[np.float32]], path: Path, progress: Progress
) -> None:
    """Write the file: `header` is the converter's writer, `importance` holds the importance of the columns of matrices.

    Holds one tensor in fp32 at a time.  Raises MinitronError for NaN and infinite weights."""
    gguf = writer()
    infos = header.tensors[0]
    for one in types:
        infos[one.name].dtype = gguf.GGMLQuantizationType(TYPES[one.type].number)
        infos[one.name].nbytes = one.num_bytes
    with quiet(), progress("writing", sum(one.num_bytes for one in types), "B") as advance:
        header.write_header_to_file(path=path)
        header.write_kv_data_to_file()
        header.write_ti_data_to_file()
        (file,) = header.fout
        header.write_padding(file, file.tell())
        wanted = {one.name: one for one in types}
        for name, info in infos.items():
            one = wanted[name]
            for data in _blocks(one, info.tensor, importance.get(name)):
                data.tofile(file)
            header.write_padding(file, one.num_bytes)
            info.tensor = None
            advance(one.num_bytes)
        header.close()


def _blocks(one: Typed, tensor: Any, importance: NDArray[np.float32] | None) -> Iterator[NDArray[Any]]:
    """What is written of a tensor: the converter's as it is, or its rows in ggml's blocks."""
    values = writer().LazyNumpyTensor.to_eager(tensor) if not isinstance(tensor, np.ndarray) else tensor
    if not one.quantised:
        yield values
        return
    columns = one.shape[-1]
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, columns)
    step = max(_ROWS_BYTES // (4 * columns), 1)
    # Each expert has an importance of its own.
    experts = one.shape[0] if importance is not None and importance.ndim == 2 else 1
    each = len(rows) // experts
    for expert in range(experts):
        weight = importance if importance is None or importance.ndim == 1 else importance[expert]
        for start in range(expert * each, (expert + 1) * each, step):
            yield _quantised(one, rows[start : min(start + step, (expert + 1) * each)], weight)


def _quantised(one: Typed, rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    if not np.isfinite(rows).all():
        raise MinitronError(f"{one.name} holds NaN or infinite numbers; llama.cpp cannot run it: repair the weights.")
    return quantised(one.type, rows, importance)


def uncalibrated(types: list[Typed], mixture: Mixture, importance: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that are made with an importance alone and that have none: those that llama.cpp's
    quantiser refuses, and the output layer, of which ggml's code stops the process.  An embedding needs none
    (minitron.gguf.rows)."""
    embeddings = {"token_embd.weight", "per_layer_token_embd.weight"}
    if all(one.name != "output.weight" for one in types):
        embeddings.remove("token_embd.weight")  # which is the output layer too
    outer = {"token_embd.weight", "output.weight", *embeddings}
    return [
        one.name
        for one in types
        if one.quantised
        and one.name not in importance
        and (
            (TYPES[one.type].calibrated and one.name not in embeddings)
            or (mixture.is_q2_k_s and one.type == "q2_k" and one.name not in outer)
        )
    ]


__all__ = ["Typed", "fitted", "layer_of", "typed", "uncalibrated", "write"]
