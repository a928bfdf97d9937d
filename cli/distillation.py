"""Options of `minitron distill` for student, teacher, text and output; cli/training.py has those of the recipe."""

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
    assignments,
    option,
)
from distill.teacher.kept import DEFAULT, parse_kept
from minitron.measure.records import parse_source
from minitron.quantise.wanted import KV_FORMATS

DISTILLATION: Final[dict[str, Option]] = {
    "student": Option.of(StudentArgument),
    "teacher": Option.of(TeacherOption),
    "output": Option.of(OutputOption),
    "teacher_precision": Option.of(TeacherPrecisionOption),
    "fp8_keep": Option.of(Fp8KeepOption, default=str(DEFAULT), read=parse_kept),
    "student_format": Option(
        option(
            "--student-format",
            "Train the student in this number format, with straight-through gradients, and write it so (QAD): "
            "int4, int8, nvfp4, fp8 and others of `minitron quantize`.",
            "FORMAT",
        )
    ),
    "student_keep": Option(
        option(
            "--student-keep", "Keep a part of the student in another format: attention=bf16. Repeatable.", "PART=FORMAT"
        ),
        type=list[str] | None,
        default=None,
        read=assignments("--student-keep", "attention=bf16"),
    ),
    "student_kv": Option(
        option(
            "--student-kv",
            f"Number format of keys and values that a student in a format is made for: {' or '.join(KV_FORMATS)}.",
            "FORMAT",
        )
    ),
    "student_round": Option(
        option(
            "--student-round",
            "Where training in a format begins: best (columns make up for each other's rounding) or nearest.",
            "WAY",
        )
    ),
    "student_scales": Option(
        option(
            "--student-scales",
            "frozen: the scales of a student in a format stay as they begin; learned: they are trained too.",
            "WAY",
        )
    ),
    "cache": Option(
        option(
            "--cache-teacher",
            "Folder that caches the teacher's probabilities for a sparse loss: written once, so that "
            "later runs need no teacher in memory.",
            "FOLDER",
        )
    ),
    "teacher_device": Option(
        option(
            "--teacher-device",
            "Device of the teacher: cpu, cuda:1; default: the student's.",
            "DEVICE",
        )
    ),
    "offload_teacher": Option(
        typer.Option(
            "--offload-teacher",
            help="For a teacher larger than memory: read its layers from disk, one by one, for many steps at once.",
        )
    ),
    "data": Option(
        option(
            "--data",
            "Text: a .txt, .jsonl, .json, .csv or .parquet file, a folder of them, or hf:OWNER/NAME for a dataset on "
            "the hub. Repeat as WEIGHT:PATH for a blend.",
            "[WEIGHT:]PATH",
        ),
        type=list[str] | None,
        default=None,
        read=lambda typed: tuple(parse_source(one) for one in typed or ()),
    ),
    "validation": Option(option("--validation", "Held-out text; default: the end of --data is held out.", "FILE")),
    "device": Option.of(DeviceOption),
    "work": Option(option("--work", "Folder for training checkpoints; default: OUTPUT.work.", "FOLDER")),
    "track": Option(
        typer.Option(
            "--track",
            help="Send metrics to a tracker while training: none, tensorboard, wandb or trackio.",
            metavar="SERVICE",
        )
    ),
    "overwrite": Option.of(OverwriteOption),
}
"""Field of distill.run.distillation.Distillation -> how it is typed."""
