"""What a checkpoint is to be kept in, as a person asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, formats_for

Way = Literal["best", "nearest"]
"""How numbers are rounded: with scales that are searched and, given calibration text, each column making up for those
before it; or each to the nearest, with scales by the largest number."""

KV_FORMATS: Final = ("bf16", "fp8")
"""In which a checkpoint may say that keys and values are to be kept: fp8 has its scales in the files."""


@dataclass(frozen=True)
class Wanted:
    """What a checkpoint is to be kept in."""

    form: str
    """A name in minitron.memory.formats.FORMATS that is written."""

    keep: Mapping[str, str] = field(default_factory=dict)
    """Component -> another format, bf16 among them."""

    kv: str = "bf16"
    """Of KV_FORMATS: whether the files hold scales by which an engine keeps keys and values in fp8."""

    def __post_init__(self) -> None:
        for form in (self.form, *self.keep.values()):
            if form not in FORMATS or (FORMATS[form].quantised and not FORMATS[form].written):
                raise MinitronError(f"{form} is no format that Minitron writes; choose {', '.join(written_formats())}.")
        if not FORMATS[self.form].quantised:
            raise MinitronError(f"--format {self.form} is not quantised; choose {', '.join(written_formats())}.")
        if self.kv not in KV_FORMATS:
            raise MinitronError(f"keys and values cannot be kept in {self.kv}; choose {' or '.join(KV_FORMATS)}.")


def written_formats() -> tuple[str, ...]:
    """The names of the formats that Minitron writes."""
    return tuple(name for name in formats_for("weights") if FORMATS[name].written)
