"""Options of `minitron distill` for student, teacher, text and output; cli/training.py has those of the recipe."""

from pathlib import Path
from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import (
    ON_THE_HUB,
    DeviceOption,
    Fp8KeepOption,
    OutputOption,
    OverwriteOption,
    StudentArgument,
    TeacherPrecisionOption,
    assignments,
    model_path,
    option,
)
from distill.policy import KEY
from distill.run.distillation import Distillation
from distill.teacher.kept import DEFAULT, parse_kept
from minitron.errors import MinitronError
from minitron.measure.records import parse_domain, parse_source
from minitron.quantise.wanted import KV_FORMATS


def _read_teachers(typed: list[str]) -> tuple[Path, dict[str, Path]]:
    """(the teacher of text without a domain, domain -> teacher); without one of the first kind, the first typed."""
    plain, found = list[Path](), dict[str, Path]()
    for text in typed:
        domain, path = parse_domain(text)
        if domain in found or (not domain and plain):
            which = f"teachers of {domain}" if domain else "teachers without a domain"
            raise MinitronError(f"--teacher gives two {which}; keep one, or name its domain: --teacher DOMAIN=MODEL.")
        if domain:
            found[domain] = model_path(path)
        else:
            plain.append(model_path(path))
    return (plain or list(found.values()))[0], found


def request(**values: Any) -> Distillation:
    """The request from what was typed."""
    teacher, teachers = values.pop("teacher")
    return Distillation(**values, teacher=teacher, teachers=teachers)


DISTILLATION: Final[dict[str, Option]] = {
    "student": Option.of(StudentArgument),
    "teacher": Option(
        option(
            "--teacher",
            f"Teacher: a checkpoint folder, or {ON_THE_HUB}. Repeat as DOMAIN=MODEL for text of a domain "
            "(--data DOMAIN=PATH).",
            "[DOMAIN=]MODEL",
        ),
        type=list[str],
        read=_read_teachers,
    ),
    "output": Option.of(OutputOption),
    "teacher_precision": Option.of(TeacherPrecisionOption),
    "fp8_keep": Option.of(Fp8KeepOption, default=str(DEFAULT), read=parse_kept),
    "student_format": Option(
        option(
            "--format",
            "Number format of the weights to write, in which the student is trained, with straight-through gradients "
            "(QAD): int4, int8, nvfp4, fp8 and others of `minitron quantize`.",
            "FORMAT",
        )
    ),
    "student_keep": Option(
        option(
            "--keep", "Number format of one part of the model, the student: attention=bf16. Repeatable.", "PART=FORMAT"
        ),
        type=list[str] | None,
        default=None,
        read=assignments("--keep", "attention=bf16"),
    ),
    "student_kv": Option(
        option(
            "--kv",
            f"Number format of keys and values that a student in a format is made for: {' or '.join(KV_FORMATS)}.",
            "FORMAT",
        )
    ),
    "student_round": Option(
        option(
            "--round",
            "How weights are rounded where training in a format begins: best (columns make up for each other's "
            "rounding) or nearest.",
            "WAY",
        )
    ),
    "student_scales": Option(
        option(
            "--scales",
            "Whether the scales of a student in a format are trained. frozen: they stay as they begin; learned: they "
            "are.",
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
            help="Read the teacher's layers from disk, one by one, for many steps at once: for a teacher larger than "
            "memory.",
        )
    ),
    "data": Option(
        option(
            "--data",
            "Text: a .txt, .jsonl, .json, .csv or .parquet file, a folder of them, or hf:OWNER/NAME for a dataset on "
            "the hub. Repeat as WEIGHT:PATH for a blend, and as DOMAIN=PATH for the teacher of a domain.",
            "[DOMAIN=][WEIGHT:]FILE",
        ),
        type=list[str] | None,
        default=None,
        read=lambda typed: tuple(parse_source(one) for one in typed or ()),
    ),
    "on_policy_endpoint": Option(
        option(
            "--on-policy-endpoint",
            "OpenAI-compatible server of the student, such as vLLM, that writes its own answers: "
            f"http://localhost:8000/v1; a key comes from {KEY}. Default: they are written here.",
            "URL",
        )
    ),
    "on_policy_model": Option(
        option("--on-policy-model", "Name of the student at the endpoint; default: the only one it serves.", "NAME")
    ),
    "validation": Option(option("--text", "Held-out text; default: the end of --data is held out.", "FILE")),
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
