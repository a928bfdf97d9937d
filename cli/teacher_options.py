"""Options of `minitron distill` that say how the teacher is kept."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.option_groups import spread_options
from cli.options import Fp8KeepOption, Precision, TeacherPrecisionOption
from minitron.errors import MinitronError

CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-teacher",
        help="Folder for what a sparse loss reads of the teacher: written once, later runs need no teacher in memory.",
        metavar="FOLDER",
        show_default=False,
    ),
]
TeacherDeviceOption = Annotated[
    str | None,
    typer.Option(
        "--teacher-device",
        help="Where the teacher is kept, as torch spells it: cpu, cuda:1; with the student unless given.",
        metavar="DEVICE",
        show_default=False,
    ),
]
OffloadOption = Annotated[
    bool,
    typer.Option(
        "--offload-teacher",
        help="For a teacher that memory does not hold: its layers are read from the disk, for many steps at once.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Keeping:
    """The teacher's options as typed."""

    teacher_precision: TeacherPrecisionOption = Precision.BF16
    fp8_keep: Fp8KeepOption = "attention,before-attention"
    cache_teacher: CacheOption = None
    teacher_device: TeacherDeviceOption = None
    offload_teacher: OffloadOption = False

    def check(self, processes: int) -> None:
        """Raise MinitronError where so many processes cannot keep it so."""
        if self.teacher_device is not None and processes > 1:
            raise MinitronError("many processes share the teacher with the student; leave --teacher-device out.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of distill.run.train.distill; raises MinitronError for a --fp8-keep that says nothing."""
        from distill.teacher.fp8 import parse_kept

        return {
            "teacher_precision": self.teacher_precision.value,
            "fp8_keep": parse_kept(self.fp8_keep),
            "cache": self.cache_teacher,
            "teacher_device": self.teacher_device,
            "offload_teacher": self.offload_teacher,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The same for --json."""
        return {
            "teacher_precision": self.teacher_precision.value,
            "fp8_keep": self.fp8_keep,
            "cache_teacher": None if self.cache_teacher is None else str(self.cache_teacher),
            "teacher_device": self.teacher_device,
            "offload_teacher": self.offload_teacher,
        }


def takes_keeping(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `keeping` spread out into the options of Keeping, as typer reads them."""
    return spread_options(function, "keeping", Keeping)
