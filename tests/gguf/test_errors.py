"""What numbers lose in the types of ggml, by which the search weighs types against sizes."""

import ctypes

import numpy as np
import pytest

from minitron.memory.formats import FORMATS, ggml_format
from minitron.memory.ggml import TYPES

# llama.cpp searches half a minute for the neighbours in the grid of these, before it rounds the first number.
SLOW = ("iq1_m", "iq1_s")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name, kind in TYPES.items() if kind.instead
]


@pytest.mark.parametrize("name", NAMES)
def test_the_errors_of_types_are_those_of_normally_distributed_numbers(name: str) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    from minitron.gguf.extra import quantise_rows

    rows = np.random.default_rng(7).standard_normal((16, 1024)).astype(np.float32)
    alike = np.ones(1024, dtype=np.float32)
    data = np.empty(int(TYPES[name].layout.matrix(*rows.shape)), dtype=np.uint8)
    pointers = [one.ctypes.data_as(ctypes.c_void_p) for one in (rows, data, alike)]
    assert quantise_rows()(TYPES[name].number, *pointers[:2], 0, *rows.shape, pointers[2]) == data.nbytes
    found = gguf.quants.dequantize(data.reshape(len(rows), -1), gguf.GGMLQuantizationType(TYPES[name].number))
    error = float(np.square(found - rows).mean() / np.square(rows).mean())
    assert TYPES[name].relative_error == pytest.approx(error, rel=0.06)
    assert ggml_format(name).relative_error == TYPES[name].relative_error


def test_a_mixture_loses_what_most_of_its_matrices_do() -> None:
    assert FORMATS["iq2_xxs"].relative_error == TYPES["iq2_xxs"].relative_error
    assert FORMATS["gguf-bf16"].relative_error == 0.0
