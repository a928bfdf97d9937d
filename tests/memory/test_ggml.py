"""Which type llama.cpp gives which tensor: held against what its own quantiser chose (tests/reference)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minitron.errors import MinitronError
from minitron.memory.ggml import MIXTURES, TYPES, Facts, Place, fitted, mixture_of, role_of

RECORD = json.loads((Path(__file__).parent.parent / "reference/llama_cpp_types.json").read_text())

FACTS = {
    "llama, 24 layers, 4 query heads a KV head, narrow MLPs": Facts(24, 0, 8, 2, 24, tied=False, llama=True),
    "llama, 17 layers, tied, one query head a KV head": Facts(17, 0, 4, 4, 17, tied=True, llama=True),
    "llama, 9 layers, rows of 72": Facts(9, 0, 6, 2, 9, tied=False, llama=True),
    "hybrid, 16 layers, 8 experts": Facts(16, 8, 0, 0, 4, tied=False),
    "hybrid, 16 layers, 6 experts": Facts(16, 6, 0, 0, 4, tied=False),
    "hybrid, 16 layers, dense": Facts(16, 0, 8, 2, 4, tied=False),
}


def _matrices(model: dict[str, Any]) -> Iterator[tuple[str, int, int, str, list[int]]]:
    """(name, place in the record, layer, role, shape) of what is quantised, in llama.cpp's order."""
    tensors = model["tensors"]

    def layer(name: str) -> int:
        return int(name.split(".")[1]) if name.startswith("blk.") else -1

    plain = {index for index in range(len(tensors)) if all(codes[index] == _F32 for codes in model["types"].values())}
    for index in sorted(range(len(tensors)), key=lambda index: (layer(tensors[index][0]), tensors[index][0])):
        name, *shape = tensors[index]
        if index not in plain:
            yield name, index, max(layer(name), 0), role_of(name), shape


_F32 = next(letter for letter, name in RECORD["letters"].items() if name == "f32")


@pytest.mark.parametrize("label", FACTS)
def test_every_type_is_the_one_that_llama_cpp_chose(label: str) -> None:
    model = RECORD["models"][label]
    compared = 0
    for told, codes in model["types"].items():
        name, _, calibrated = told.partition(", ")
        facts = Facts(**{**vars(FACTS[label]), "calibrated": bool(calibrated)})
        seen: dict[str, int] = {}
        for tensor, index, layer, role, shape in _matrices(model):
            number = seen.get(role, 0)
            seen[role] = number + 1
            found = MIXTURES[name].type_of(Place(role, layer, number), facts, shape[-1])
            assert found == RECORD["letters"][codes[index]], (told, tensor)
            compared += 1
    assert compared > 1000


@pytest.mark.parametrize(
    ("name", "numbers", "size"),
    [
        # ggml-common.h: the sizes that its static assertions give the blocks.
        *(("q4_0", 32, 18), ("q4_1", 32, 20), ("q5_0", 32, 22), ("q5_1", 32, 24), ("q8_0", 32, 34)),
        *(("q2_k", 256, 84), ("q3_k", 256, 110), ("q4_k", 256, 144), ("q5_k", 256, 176), ("q6_k", 256, 210)),
        *(("iq2_xxs", 256, 66), ("iq2_xs", 256, 74), ("iq2_s", 256, 82), ("iq3_xxs", 256, 98), ("iq3_s", 256, 110)),
        *(("iq1_s", 256, 50), ("iq1_m", 256, 56), ("iq4_nl", 32, 18), ("iq4_xs", 256, 136), ("f16", 1, 2)),
    ],
)
def test_bytes_of_blocks(name: str, numbers: int, size: int) -> None:
    assert TYPES[name].layout.matrix(3, 4 * numbers) == 3 * 4 * size


def test_rows_of_no_whole_blocks_take_another_type() -> None:
    assert [fitted("q4_k", columns) for columns in (512, 576, 72)] == ["q4_k", "q5_0", "f16"]
    assert fitted("iq2_xxs", 288) == "iq4_nl"


def test_a_type_that_llama_cpp_has_not() -> None:
    with pytest.raises(MinitronError, match=r"no type 'int4'.*q8_0"):
        mixture_of("int4")
