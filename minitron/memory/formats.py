"""Number formats: their bits and scales, what may be stored in them, and which GPUs compute in them.

The command line lists them in its help, so that this module imports nothing heavy.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix; scales are shared along C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.model.axes import shown
from minitron.model.dtypes import stated_dtype
from minitron.model.matrix_layout import Layout, Scheme

Use = Literal["weights", "kv", "state"]
"""What is kept: the weights, keys and values of attention, or states of Mamba layers (recurrent and convolution)."""

_USES: Final = ("weights", "kv", "state")
_ORIGINS: Final = ("exact", "published", "estimated")


@dataclass(frozen=True)
class Format(Layout):
    """How a matrix is written down."""

    name: str

    uses: tuple[Use, ...] = ("weights",)
    """What may be kept so.  Keys and values, and states, have the scales of groups alone."""

    native: tuple[int, int] | None = None
    """The CUDA compute capability from which tensor cores know it; None where the planner does not say."""

    config_names: tuple[str, ...] = ()
    """What configs call it, and vLLM the first of them: a dtype, or for quantised weights the quant_algo of modelopt,
    else the quant_method."""

    origin: str = "exact"
    """Where these numbers come from: exact, published or estimated."""

    note: str = ""
    """The layout in words."""

    source: str = ""
    """Whose layout it is."""

    def __post_init__(self) -> None:
        if self.bits < 1 or min(self.group, self.group_bytes, self.row_bytes, self.matrix_bytes) < 0:
            raise ValueError(f"format {self.name}: it needs bits, and no part of it can be negative")
        if not self.uses or not set(self.uses) <= set(_USES):
            raise ValueError(f"format {self.name}: uses are some of {', '.join(_USES)}")
        if self.origin not in _ORIGINS:
            raise ValueError(f"format {self.name}: the origin is one of {', '.join(_ORIGINS)}")
        if self.quantised and "state" in self.uses:
            raise ValueError(f"format {self.name}: no engine keeps states in fewer than 16 bits")

    @property
    def quantised(self) -> bool:
        """Whether only matrices, and keys and values, can be kept so; a model computes in any other."""
        return self.bits < 16


_ALL: Final[tuple[Use, ...]] = ("weights", "kv", "state")
_PUBLISHED: Final = "the bytes of published checkpoints"
_COMMON: Final = "the common layout of weight-only quantisers, which differ by about one per cent"

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
            uses=("weights", "kv"),
            native=(8, 9),
            config_names=("fp8", "fbgemm_fp8"),
            origin="published",
            note="E4M3, one scale per matrix and one for its inputs",
            source=_PUBLISHED,
        ),
        Format(
            "nvfp4",
            bits=4,
            group=16,
            group_bytes=1,
            matrix_bytes=8,
            uses=("weights", "kv"),
            native=(10, 0),
            config_names=("nvfp4", "mixed_precision"),
            origin="published",
            note="E2M1, one E4M3 scale per 16 numbers",
            source=_PUBLISHED,
        ),
        Format(
            "int8",
            bits=8,
            row_bytes=2,
            uses=("weights", "kv"),
            origin="estimated",
            note="one bf16 scale per row",
            source=_COMMON,
        ),
        Format(
            "int4",
            bits=4,
            group=128,
            group_bytes=2,
            origin="estimated",
            note="one bf16 scale per 128 numbers of a row",
            source=_COMMON,
        ),
    )
}
"""name -> format."""


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


def mildest_first() -> tuple[str, ...]:
    """bf16 and the quantised weight formats, highest precision first: by bits with scales."""
    quantised = [form for form in FORMATS.values() if form.quantised and "weights" in form.uses]
    return ("bf16", *(form.name for form in sorted(quantised, key=lambda form: -form.bits_with_scales)))
