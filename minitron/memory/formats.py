"""Number formats: their bits and scales, what may be stored in them, and which GPUs compute in them.

The command line lists them in its help, so that this module imports nothing heavy.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix; scales are shared along C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.memory.ggml import MIXTURES, TYPES, mixture_of
from minitron.model.axes import shown
from minitron.model.dtypes import stated_dtype
from minitron.model.matrix_layout import Layout, Scheme

Use = Literal["weights", "kv", "state", "conv"]
"""What is kept: the weights, keys and values of attention, recurrent states, or the last inputs of convolutions."""

Numbers = Literal["", "e4m3", "e2m1", "int8", "int4"]
Method = Literal["", "modelopt", "compressed-tensors"]
Inputs = Literal["", "static", "token"]

Seen = Literal["run", "loaded", "read", "told"]
"""How it is known that an engine reads a format: files of it were run here, or read by the engine's own loader without
its kernels (benchmarks/loading.py); its code was read; its makers say so."""

_USES: Final = ("weights", "kv", "state", "conv")
_ORIGINS: Final = ("exact", "published", "estimated")

KV_SCALE_BYTES: Final[Mapping[str, int]] = {"modelopt": 4, "compressed-tensors": 2}
"""Method -> the bytes of the scale of keys, or of values, of a layer in its files: fp32, or bf16."""

HEAD_ENGINES: Final[Mapping[str, tuple[tuple[str, Seen], ...]]] = {
    "modelopt": (("vLLM", "read"),),
    "compressed-tensors": (("vLLM", "read"), ("transformers", "run")),
}
"""Method -> the engines that read an output layer in its formats, and how that is known.  An output layer that shares
the embedding's numbers none of them reads so, nor an embedding in all formats and models (docs/quantization.md)."""


@dataclass(frozen=True)
class Format(Layout):
    """How a matrix is written down."""

    name: str

    uses: tuple[Use, ...] = ("weights",)
    """What may be kept so."""

    kv: Layout | None = None
    """How keys, or values, are kept in a cache: a row is those of a head and a token, a matrix all keys, or all values,
    of a layer, whose scale is in the checkpoint.  None where they have the scales of groups alone."""

    state: Layout | None = None
    """How a recurrent state is kept: a row is what runs along its last dimension, the state of a channel."""

    native: tuple[int, int] | None = None
    """The CUDA compute capability from which tensor cores know it; None where the planner does not say."""

    config_names: tuple[str, ...] = ()
    """What configs call it, and vLLM the first of them: a dtype, or for quantised weights the quant_algo of modelopt,
    else the quant_method."""

    origin: str = "exact"
    """Where these numbers come from: exact, published or estimated."""

    groups: tuple[int, ...] = ()
    """Where a scale may be shared by one of several counts of numbers: these, the largest first, `group` the first of
    them.  A matrix takes the largest that divides its columns."""

    numbers: Numbers = ""
    """What one number is, where Minitron writes the format; empty where it only counts it."""

    method: Method = ""
    """Whose layout and config it is written in: the quant_method of config.json."""

    inputs: Inputs = ""
    """How an engine rounds what a linear reads: not at all, by one scale that calibration gives (static), or by one a
    token."""

    gguf: str = ""
    """The type of a GGUF file (minitron.memory.ggml.MIXTURES) in which each tensor has a type of its own; the layout is
    then that of most matrices.  Empty for formats of safetensors."""

    instead: Format | None = None
    """The format of matrices whose rows are no whole number of groups; None where a last group may be short."""

    engines: tuple[tuple[str, Seen], ...] = ()
    """The engines that read it, and how that is known."""

    least: tuple[int, int] | None = None
    """The CUDA compute capability from which vLLM runs it at all, on weights unpacked to 16 bits where that is below
    `native`; None where that is not known."""

    note: str = ""
    """The layout in words."""

    source: str = ""
    """Whose layout it is."""

    relative_error: float = 0.0
    """The mean squared error of normally distributed numbers, scales searched, as a share of their mean square:
    measured, of formats that can be searched; 0 for others."""

    def __post_init__(self) -> None:
        if self.bits < 1 or min(self.group, self.group_bytes, self.row_bytes, self.matrix_bytes) < 0:
            raise ValueError(f"format {self.name}: it needs bits, and no part of it can be negative")
        if not self.uses or not set(self.uses) <= set(_USES):
            raise ValueError(f"format {self.name}: uses are some of {', '.join(_USES)}")
        if self.origin not in _ORIGINS:
            raise ValueError(f"format {self.name}: the origin is one of {', '.join(_ORIGINS)}")
        if self.quantised and "conv" in self.uses:
            raise ValueError(f"format {self.name}: no engine keeps convolutions' inputs in fewer than 16 bits")
        if self.groups and (self.groups[0] != self.group or list(self.groups) != sorted(self.groups, reverse=True)):
            raise ValueError(f"format {self.name}: groups begin with `group` and become smaller")
        if bool(self.numbers) > bool(self.relative_error):
            raise ValueError(f"format {self.name}: what is written has an error, which is measured")
        if bool(self.numbers) != bool(self.method):
            raise ValueError(f"format {self.name}: what is written has both numbers and a method")

    @property
    def quantised(self) -> bool:
        """Whether only matrices, and keys and values, can be kept so; a model computes in any other."""
        return self.bits < 16

    @property
    def written(self) -> bool:
        """Whether `minitron quantize` writes it."""
        return bool(self.numbers)

    def kept(self, use: Literal["kv", "state"]) -> Layout:
        """How the rows of keys and values, or of states, are kept in a cache."""
        found = self.kv if use == "kv" else self.state
        return found or Layout(bits=self.bits, group=self.group, group_bytes=self.group_bytes)

    def in_groups(self, size: int) -> Format:
        """The same with a scale for so many numbers."""
        return self if size == self.group else replace(self, group=size, groups=(size,))

    def group_for(self, columns: int) -> int | None:
        """The numbers that share a scale where matrices of this width, or whose widths have it as their greatest common
        divisor, are kept so; 0 where no group does; None where no group divides it."""
        if not self.group or not self.written:
            return self.group
        return next((size for size in self.groups or (self.group,) if columns % size == 0), None)

    def fitting(self, columns: int) -> Format:
        """The format that a matrix of this width takes."""
        return self if self.instead is None or columns % self.group == 0 else self.instead.fitting(columns)

    def stored(self, rows: Any, columns: Any, together: Any, kept: Format) -> Any:
        """Bytes of an [R, C] matrix that is kept so where a group divides `together`, and in `kept` elsewhere; whole
        numbers or arrays of them."""
        if self.instead is not None:
            other, fits = self.instead.stored(rows, columns, together, kept), columns % self.group == 0
            return other + fits * (self.matrix(rows, columns) - other)
        if not self.group or not self.written:
            return self.matrix(rows, columns)
        found = kept.matrix(rows, columns)
        for size in reversed(self.groups or (self.group,)):
            fits = together % size == 0
            found = found + fits * (self.in_groups(size).matrix(rows, columns) - found)
        return found


_ALL: Final[tuple[Use, ...]] = ("weights", "kv", "state", "conv")
_PUBLISHED: Final = "the bytes of published checkpoints"
_COMPRESSED: Final = "compressed-tensors' compressors"
_SERVERS: Final[tuple[tuple[str, Seen], ...]] = (("vLLM", "loaded"), ("SGLang", "read"), ("TensorRT-LLM", "told"))
_RUN: Final[tuple[tuple[str, Seen], ...]] = (("vLLM", "run"), ("SGLang", "read"), ("transformers", "run"))
_KEPT_IN_BLOCKS: Final = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""The types of GGUF files that may keep keys and values too."""


def _gguf(kind: str) -> Format:
    """The format of a GGUF file whose type is `kind`; those without blocks are told from plain tensors by their name,
    for norms, biases, routers and convolutions stay in fp32 there."""
    most = TYPES[MIXTURES[kind].most]
    note = f"a GGUF file of which most matrices are in {MIXTURES[kind].most}, the rest as llama.cpp chooses"
    return Format(
        kind if most.instead else f"gguf-{kind}",
        **vars(most.layout),
        uses=("weights", "kv") if kind in _KEPT_IN_BLOCKS else ("weights",),
        gguf=kind,
        relative_error=most.relative_error,
        engines=(("llama.cpp", "read"),),
        note=note,
        source="llama.cpp's quantiser",
    )


FORMATS: Final = {
    form.name: form
    for form in (
        Format(
            "fp32",
            bits=32,
            uses=_ALL,
            config_names=("float32",),
            note="8 bits of exponent, 23 of fraction",
            source="IEEE 754 binary32",
        ),
        Format(
            "bf16",
            bits=16,
            uses=_ALL,
            native=(8, 0),
            config_names=("bfloat16",),
            note="8 bits of exponent, 7 of fraction",
            source="the upper half of an fp32",
        ),
        Format(
            "fp16",
            bits=16,
            uses=_ALL,
            config_names=("float16",),
            note="5 bits of exponent, 10 of fraction",
            source="IEEE 754 binary16",
        ),
        Format(
            "fp8",
            bits=8,
            matrix_bytes=8,
            uses=("weights", "kv", "state"),
            kv=Layout(bits=8, matrix_bytes=4),
            state=Layout(bits=8, row_bytes=4),
            native=(8, 9),
            config_names=("fp8", "fbgemm_fp8"),
            numbers="e4m3",
            method="modelopt",
            inputs="static",
            engines=_SERVERS,
            least=(8, 0),
            origin="published",
            relative_error=7.0e-04,
            note="E4M3, one scale per matrix and one for its inputs",
            source=_PUBLISHED,
        ),
        Format(
            "fp8-dynamic",
            bits=8,
            row_bytes=2,
            native=(8, 9),
            numbers="e4m3",
            method="compressed-tensors",
            inputs="token",
            engines=(("vLLM", "loaded"), *_RUN[1:]),
            least=(7, 5),
            relative_error=6.5e-04,
            note="E4M3, one bf16 scale per row; inputs are scaled token by token",
            source=_COMPRESSED,
        ),
        Format(
            "nvfp4",
            bits=4,
            group=16,
            group_bytes=1,
            matrix_bytes=8,
            uses=("weights", "kv"),
            kv=Layout(bits=4, group=16, group_bytes=1, matrix_bytes=4),
            native=(10, 0),
            config_names=("nvfp4", "mixed_precision"),
            numbers="e2m1",
            method="modelopt",
            inputs="static",
            engines=_SERVERS,
            least=(7, 5),
            origin="published",
            relative_error=6.7e-03,
            note="E2M1, one E4M3 scale per 16 numbers",
            source=_PUBLISHED,
        ),
        Format(
            "nvfp4a16",
            bits=4,
            group=16,
            group_bytes=1,
            matrix_bytes=4,
            config_names=("w4a16_nvfp4",),
            numbers="e2m1",
            method="modelopt",
            engines=(("vLLM", "loaded"), ("SGLang", "read")),
            least=(7, 5),
            relative_error=6.7e-03,
            note="the weights of nvfp4 alone; inputs stay in 16 bits",
            source="modelopt's export (W4A16_NVFP4)",
        ),
        Format(
            "int8",
            bits=8,
            row_bytes=2,
            uses=("weights", "kv", "state"),
            kv=Layout(bits=8, row_bytes=4),
            state=Layout(bits=8, row_bytes=4),
            native=(7, 5),
            numbers="int8",
            method="compressed-tensors",
            inputs="token",
            engines=_RUN,
            least=(7, 5),
            relative_error=6.2e-05,
            note="one bf16 scale per row; inputs are scaled token by token",
            source=_COMPRESSED,
        ),
        Format(
            "int4",
            bits=4,
            group=128,
            groups=(128, 64, 32),
            group_bytes=2,
            matrix_bytes=16,
            word=32,
            numbers="int4",
            method="compressed-tensors",
            engines=_RUN,
            least=(7, 5),
            relative_error=9.4e-03,
            note="one bf16 scale per 128 numbers of a row, or 64 or 32 where 128 do not divide it",
            source=_COMPRESSED,
        ),
        *map(_gguf, MIXTURES),
    )
}
"""name -> format."""


def gguf_format(kind: str) -> str:
    """The name in FORMATS of a GGUF file's type; raises MinitronError where there is none."""
    mixture_of(kind)
    return next(form.name for form in FORMATS.values() if form.gguf == kind)


GGUF_OF: Final = {"fp32": "gguf-f32", "bf16": "gguf-bf16", "fp16": "gguf-f16"}
"""A format of plain numbers -> that of the GGUF file in which matrices are kept so."""


@cache
def ggml_format(name: str, *, output: bool = False) -> Format:
    """The format of one tensor in a type of ggml; of an output layer with `output`, which has a way of its own where
    rows are no whole number of blocks."""
    kind = TYPES[name]
    if not kind.instead:
        return FORMATS[{"f32": "fp32", "f16": "fp16"}.get(name, name)]
    instead = "q8_0" if output and name != "q8_0" else kind.instead
    return Format(
        name, **vars(kind.layout), instead=ggml_format(instead), relative_error=kind.relative_error, source="ggml"
    )


def ggml_name(form: Format) -> str:
    """The type of ggml whose format that is."""
    return {"fp32": "f32", "fp16": "f16"}.get(form.name, form.name)


STORED: Final = "as stored"
"""Stands for the formats that a quantised checkpoint's config gives its tensors."""


@cache
def format_of(scheme: Scheme) -> Format:
    """The format of a scheme that a config names, in its own layout."""
    return Format(
        scheme.name,
        native=FORMATS[scheme.name].native if scheme.name in FORMATS else None,
        origin="published" if scheme.known else "estimated",
        note=scheme.told,
        **vars(scheme.layout),
    )


def formats_for(use: Use) -> tuple[str, ...]:
    """The names of the formats that something may be kept in."""
    return tuple(name for name, form in FORMATS.items() if use in form.uses)


def named_in_config(name: str, *, quantised: bool) -> str | None:
    """The format that a config calls so, among the dtypes or among quantised ones; None where there is none."""
    found = (form for form in FORMATS.values() if form.quantised == quantised and name in form.config_names)
    return next((form.name for form in found), None)


def stored_format(config: Mapping[str, Any]) -> str:
    """The format of the config's dtype; bf16 where it names none, or is that of a quantised model and names that of its
    packed numbers.  Raises MinitronError for any other dtype that no format has."""
    from minitron.model.quantised.quantisation import section_of

    dtype = stated_dtype(config)
    found = "bf16" if dtype is None else named_in_config(dtype, quantised=False)
    if found is None and section_of(config) is None:
        known = (name for form in FORMATS.values() if not form.quantised for name in form.config_names)
        raise MinitronError(
            f"config.json: dtype is {shown(dtype)}, in which Minitron counts no model; write one of {', '.join(known)}."
        )
    return found or "bf16"
