"""Options that several commands share, as annotated types: the same name, help text and parser everywhere.

A command writes `def command(model: ModelArgument, seed: SeedOption = 0, as_json: JsonOption = False)`.

    arguments   ModelArgument, WeightsArgument (what has weights), ModelsArgument, StudentArgument
    files       OutputOption (-o), OverwriteOption, DataOption, TextOption, ScoresOption, PlanOption
    running     SamplesOption, SequenceLengthOption, BatchSizeOption, SeedOption, DtypeOption,
                DeviceOption, TeacherPrecisionOption, SpeedOption
    output      JsonOption
    own         option, size_option, tokens_option: for a command's own options
    parsers     bytes_option, count_option, parameters_option, seconds_option: for `typer.Option(parser=...)`;
                assignments, numbers, words: for lists

Options that make up a request come together, in a table beside it: see cli/option_groups.py.

No command declares `--debug`: cli/app.py adds it to every command.  Paths are checked by the code that opens them,
which raises a MinitronError, so that a wrong path reads the same from every command.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from distill.run.distillation import Precision
from minitron.errors import MinitronError
from minitron.measure.options import Dtype
from minitron.units import parse_bytes, parse_count, parse_parameters, parse_seconds

ON_THE_HUB: Final = "a name on the hub such as org/model or org/model@revision"
"""What else MODEL may be."""

GPU_HELP: Final = "GPU name, one of those that `minitron gpus` lists, or its usable memory such as 22.06GiB"
"""What --gpu takes, in `plan` and in all that plan."""


def _reader(parse: Callable[[str], int]) -> Callable[[str | int], int]:
    def read(value: str | int) -> int:
        # typer hands a default, which is a number already, to the same function as what was typed.
        return value if isinstance(value, int) else parse(value)

    return read


bytes_option = _reader(parse_bytes)
count_option = _reader(parse_count)
parameters_option = _reader(parse_parameters)


def seconds_option(value: str | float) -> float:
    """`500ms` as seconds; a default is a number already."""
    return parse_seconds(value) if isinstance(value, str) else value


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


def assignments(option: str, example: str = "hidden_size=448") -> Callable[[list[str] | None], dict[str, str]]:
    """A reader of repeated NAME=VALUE options; `option` and `example` are for its error message."""
    return lambda texts: parse_assignments(option, texts or (), example)


def numbers(option: str, number: Callable[[str], Any]) -> Callable[[list[str] | None], dict[str, Any]]:
    """The same for values that are numbers."""

    def read(texts: list[str] | None) -> dict[str, Any]:
        found = {}
        for name, text in parse_assignments(option, texts or (), "NAME=2").items():
            try:
                found[name] = number(text)
            except ValueError:
                raise MinitronError(
                    f"{option} {name}={text}: {text!r} is not a number; write it like {option} NAME=2."
                ) from None
        return found

    return read


def words(text: str | None) -> tuple[str, ...]:
    """`"a, b"` -> `("a", "b")`."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def option(flag: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A typer option that shows no default, because the default depends on other options."""
    return typer.Option(flag, help=help, metavar=metavar, show_default=False, **more)


def complete_gpu(incomplete: str) -> list[str]:
    """The GPUs whose names begin so, for the shell."""
    from minitron.memory.gpus import GPUS

    return [name for name in GPUS if name.lower().startswith(incomplete.lower())]


def size_option(flag: str, help: str) -> Any:
    """An option for a memory size such as `1.3GiB`, without a default."""
    return option(flag, help, "SIZE", parser=bytes_option)


def tokens_option(flag: str, help: str, **more: Any) -> Any:
    """An option for a number of tokens such as `128k`."""
    return typer.Option(flag, help=help, metavar="TOKENS", parser=count_option, **more)


def model_path(text: str | Path) -> Path:
    """MODEL as a path: `~` is the home folder, and what begins with `./` is never a name on the hub."""
    path = Path(text).expanduser()
    return Path.cwd() / path if str(text).startswith("./") and not path.exists() else path


def _argument(help: str, metavar: str) -> Any:
    return typer.Argument(help=help, metavar=metavar, show_default=False, parser=model_path)


def _path(flags: str, help: str, metavar: str = "PATH") -> Any:
    return typer.Option(*flags.split(), help=help, metavar=metavar, show_default=False)


MODEL_HELP: Final = f"Hugging Face checkpoint folder, config.json, or {ON_THE_HUB}."
ModelArgument = Annotated[Path, _argument(MODEL_HELP, "MODEL")]
WeightsArgument = Annotated[Path, _argument(f"Hugging Face checkpoint folder, or {ON_THE_HUB}.", "MODEL")]
ModelsArgument = Annotated[list[Path], _argument(f"One or more checkpoint folders, or {ON_THE_HUB}.", "MODEL...")]
StudentArgument = Annotated[
    Path, _argument(f"Smaller model, to be trained: a checkpoint folder, or {ON_THE_HUB}.", "STUDENT")
]

OutputOption = Annotated[Path, _path("--output -o", "Where to write the result.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
DequantiseOption = Annotated[
    bool,
    typer.Option(
        "--dequantise",
        help="Turn a quantised checkpoint into bf16, tensor by tensor: fp8, mxfp4, compressed-tensors, modelopt.",
    ),
]
DataOption = Annotated[
    Path, _path("--data", "Text: a .txt, .jsonl, .json, .csv or .parquet file, or a folder of them.", "FILE")
]
TextOption = Annotated[
    Path, _path("--text", "Held-out text: a .txt, .jsonl, .json, .csv or .parquet file, or a folder of them.", "FILE")
]
ScoresOption = Annotated[Path | None, _path("--scores", "Scores written by `minitron score`.", "FILE")]
PlanOption = Annotated[Path | None, _path("--plan", "Plan written by `minitron plan`.", "FILE")]

SamplesOption = Annotated[
    int, typer.Option("--samples", min=1, help="Samples to read at most: sequences of text.", metavar="COUNT")
]
SequenceLengthOption = Annotated[
    int,
    typer.Option("--sequence-length", parser=count_option, help="Tokens per sequence that is read.", metavar="TOKENS"),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences per forward pass.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random choices.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number format that models compute in.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device: cpu, cuda or cuda:1; default: the first GPU, else the CPU.",
        metavar="DEVICE",
        show_default=False,
    ),
]
Fp8KeepOption = Annotated[
    str,
    typer.Option(
        "--fp8-keep",
        help="Parts of an FP8 teacher to keep in bf16, comma-separated: attention, before-attention (the "
        "Mamba layer before each attention layer), layer numbers (3,7-9), or none. Embedding, output "
        "layer, router, conv1d and norms always stay in bf16.",
        metavar="PARTS",
    ),
]
TeacherPrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--teacher-precision",
        help="Number format of the teacher's linear weights; fp8-te: FP8 by Transformer Engine, on a GPU.",
    ),
]

SpeedOption = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure tokens per second and peak memory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
