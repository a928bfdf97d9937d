"""Options of `minitron distill` that say what is trained on what, and how the teacher is kept."""

from typing import Final

import typer

from cli.option_groups import Option
from cli.options import (
    DeviceOption,
    Fp8KeepOption,
    OutputOption,
    OverwriteOption,
    StudentArgument,
    TeacherOption,
    TeacherPrecisionOption,
    option,
)
from distill.teacher.kept import DEFAULT, parse_kept
from distill.text.records import parse_source

DISTILLATION: Final[dict[str, Option]] = {
    "student": Option.of(StudentArgument),
    "teacher": Option.of(TeacherOption),
    "output": Option.of(OutputOption),
    "teacher_precision": Option.of(TeacherPrecisionOption),
    "fp8_keep": Option.of(Fp8KeepOption, default=str(DEFAULT), read=parse_kept),
    "cache": Option(
        option(
            "--cache-teacher",
            "Folder for what a sparse loss reads of the teacher: written once, later runs need no teacher in memory.",
            "FOLDER",
        )
    ),
    "teacher_device": Option(
        option(
            "--teacher-device",
            "Where the teacher is kept, as torch spells it: cpu, cuda:1; with the student unless given.",
            "DEVICE",
        )
    ),
    "offload_teacher": Option(
        typer.Option(
            "--offload-teacher",
            help="For a teacher that memory does not hold: its layers are read from the disk, for many steps at once.",
        )
    ),
    "data": Option(
        option(
            "--data",
            "Text: a .txt, .jsonl or .parquet file, a folder of them, or hf:NAME of a dataset on the hub; "
            "WEIGHT:PATH several times for a blend.",
            "[WEIGHT:]PATH",
        ),
        type=list[str] | None,
        default=None,
        read=lambda typed: tuple(parse_source(one) for one in typed or ()),
    ),
    "validation": Option(
        option("--validation", "Held-out text; the end of --data is held out where none is given.", "FILE")
    ),
    "device": Option.of(DeviceOption),
    "work": Option(option("--work", "Where checkpoints are kept; OUTPUT.work unless given.", "FOLDER")),
    "track": Option(
        typer.Option(
            "--track", help="Send figures while it runs: none, tensorboard, wandb or trackio.", metavar="SERVICE"
        )
    ),
    "overwrite": Option.of(OverwriteOption),
}
"""Field of distill.run.distillation.Distillation -> how it is typed."""
