"""The options that commands share, as annotated types: one name, one help text and one way to read a value everywhere.

A command writes `def command(model: ModelArgument, seed: SeedOption = 0, as_json: JsonOption = False)`.

    arguments   ModelArgument, ModelsArgument, StudentArgument
    files       OutputOption (-o), OverwriteOption, DataOption, TextOption, ScoresOption, PlanOption, TeacherOption
    running     SamplesOption, SequenceLengthOption, BatchSizeOption, SeedOption, DtypeOption (values of ComputeDtype),
                DeviceOption, TeacherPrecisionOption (values of Precision), SpeedOption
    by hand     SetOption (raw texts; `parse_assignments` reads them)
    output      JsonOption
    parsers     bytes_option, count_option: for `typer.Option(parser=...)` of a command's own options

The options of a plan (the GPU, the workload, the lattice) come together: see cli/planning.py.

No command declares `--debug`: cli/app.py adds it to every command.  Paths are checked by the code that opens them,
which raises a MinitronError, so that a wrong path reads the same from every command.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from minitron.errors import MinitronError
from minitron.units import parse_bytes, parse_count


class ComputeDtype(StrEnum):
    """How a model is loaded for a forward pass."""

    BF16 = "bf16"
    FP32 = "fp32"


class Precision(StrEnum):
    """How a teacher's linear weights are kept."""

    BF16 = "bf16"
    FP8 = "fp8"
    FP8_TE = "fp8-te"


def _reader(parse: Callable[[str], int]) -> Callable[[str | int], int]:
    def read(value: str | int) -> int:
        # typer hands a default, which is a number already, to the same function as what was typed.
        return value if isinstance(value, int) else parse(value)

    return read


bytes_option = _reader(parse_bytes)
count_option = _reader(parse_count)


def parse_assignments(option: str, texts: Iterable[str], example: str = "hidden_size=448") -> dict[str, str]:
    """`["hidden_size=448"]` -> `{"hidden_size": "448"}`; `option` and `example` are for the message.

    Raises MinitronError where a text is no NAME=VALUE or a name comes twice."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise MinitronError(f"{option} {text!r} is not NAME=VALUE; write it like {option} {example}.")
        if name in values:
            raise MinitronError(f"{option} gives {name} twice ({values[name]} and {value}); keep one of them.")
        values[name] = value
    return values


def _argument(help: str, metavar: str) -> Any:
    return typer.Argument(help=help, metavar=metavar, show_default=False)


def _path(flags: str, help: str, metavar: str = "PATH") -> Any:
    return typer.Option(*flags.split(), help=help, metavar=metavar, show_default=False)


ModelArgument = Annotated[Path, _argument("A Hugging Face checkpoint folder, or a config.json.", "MODEL")]
ModelsArgument = Annotated[list[Path], _argument("One or more checkpoint folders.", "MODEL...")]
StudentArgument = Annotated[Path, _argument("The smaller checkpoint folder, which is trained.", "STUDENT")]

OutputOption = Annotated[Path, _path("--output -o", "Where the result is written.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
DataOption = Annotated[Path, _path("--data", "Text: a .txt file, or a .jsonl file with a field `text` a line.", "FILE")]
TextOption = Annotated[Path, _path("--text", "Held-out text: .txt, or .jsonl with a field `text` a line.", "FILE")]
ScoresOption = Annotated[Path | None, _path("--scores", "Scores that `minitron score` wrote.", "FILE")]
PlanOption = Annotated[Path | None, _path("--plan", "A plan that `minitron plan` wrote.", "FILE")]
TeacherOption = Annotated[Path, _path("--teacher", "The checkpoint folder to learn from.", "FOLDER")]

SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="Sequences of text to read.")]
SequenceLengthOption = Annotated[
    int, typer.Option("--sequence-length", parser=count_option, help="Tokens of one sequence.", metavar="TOKENS")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The seed of every random choice.")]
DtypeOption = Annotated[ComputeDtype, typer.Option("--dtype", help="The numbers that the model computes in.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:1; the first GPU where there is one.", show_default=False),
]
Fp8KeepOption = Annotated[
    str,
    typer.Option(
        "--fp8-keep",
        help="What of an FP8 teacher stays in bf16: attention, before-attention (the Mamba layer before), numbers of "
        "layers (3,7-9), or none; embedding, output layer, router, conv1d and norms always do.",
        metavar="PARTS",
    ),
]
TeacherPrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--teacher-precision",
        help="How the teacher's linear weights are kept; fp8-te: by Transformer Engine, on a GPU.",
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Cut to a size given by hand: hidden_size=448. Repeatable.", metavar="NAME=SIZE"),
]
SpeedOption = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure tokens per second and peak memory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
