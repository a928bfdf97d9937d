"""Which input is damaged and which command reads it: a case follows from its seed and its number alone."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz import corpus, options
from fuzz.documents import damaged_json, damaged_toml
from fuzz.texts import damaged_bytes, damaged_lines, damaged_text
from fuzz.weights import damaged_weights

Damage = Callable[[Random, bytes], bytes]

DAMAGES: dict[str, Damage] = {
    ".json": damaged_json,
    ".safetensors": damaged_weights,
    ".jinja": damaged_text,
    ".jsonl": damaged_lines,
    ".toml": damaged_toml,
    ".txt": damaged_text,
    ".csv": damaged_text,
}
"""The ending of a file -> what becomes of it; other files are damaged as bytes."""

INPUTS = "in"
OUTPUTS = "out"
"""The folders of a case: what commands read, and the only place where they may write."""


@dataclass(frozen=True)
class Case:
    """One command on one damaged input."""

    seed: int
    number: int
    kind: str
    what: str
    """What was damaged, in a few words."""

    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    weight: float
    """How often, beside the others."""

    copied: Callable[[Random], tuple[str, ...]]
    """The inputs that a case has."""

    damaged: Callable[[Random, Path, tuple[str, ...]], str]
    """Damages one of them in place and says which."""

    commands: Callable[[Random, Path, tuple[str, ...]], list[str]]
    """The command line."""


def make_case(seed: int, number: int, sound: Path, folder: Path) -> Case:
    """Write the inputs of a case into `folder`, which is its working directory, and give its command line."""
    rng = Random(f"{seed}:{number}")
    name = _kind(rng)
    kind = KINDS[name]
    inputs = folder / INPUTS
    for made in (inputs, folder / OUTPUTS):
        made.mkdir(parents=True)
    copied = kind.copied(rng)
    for one in copied:
        copy = shutil.copytree if (sound / one).is_dir() else shutil.copy
        copy(sound / one, inputs / one)
    what = kind.damaged(rng, inputs, copied)
    arguments = kind.commands(rng, inputs, copied)
    return Case(seed, number, name, what, tuple(arguments))


def kind_of(seed: int, number: int) -> str:
    """The kind of input of a case."""
    return _kind(Random(f"{seed}:{number}"))


def _kind(rng: Random) -> str:
    return rng.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]


def _damage(rng: Random, file: Path) -> str:
    damage = DAMAGES.get(file.suffix, damaged_bytes)
    file.write_bytes(damage(rng, file.read_bytes()))
    return "/".join(file.parts[-2:])


def _one_of(*names: str) -> Callable[[Random, Path, tuple[str, ...]], str]:
    """Damages a file with one of the names in the first input, which is a model; all of them where none is given."""

    def damaged(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
        found = sorted(file for file in (inputs / copied[0]).rglob("*") if file.is_file())
        files = [file for file in found if not names or file.name in names]
        return _damage(rng, rng.choice(files))

    return damaged


def _weights(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    return _damage(rng, rng.choice(sorted((inputs / copied[0]).glob("*.safetensors"))))


def _whole(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    """Damages the last input, a file, or one of the files of a folder."""
    path = inputs / copied[-1]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _damage(rng, rng.choice(files))


def _companion(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    """One file beside the usual ones, damaged."""
    folder = inputs / copied[0]
    usual = {path.name for path in (options.SOUND[0] / "llama").iterdir()}
    files = sorted(path for path in folder.iterdir() if path.name not in usual)
    chosen = rng.choice(files)
    for other in files:
        if other != chosen:
            other.unlink()
    return _damage(rng, chosen) if rng.random() < 0.9 else f"companions/{chosen.name}"


def _index(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    file = inputs / copied[0] / "model.safetensors.index.json"
    if rng.random() < 0.4:
        return _damage(rng, file)
    index = json.loads(file.read_text())
    names = list(index["weight_map"])
    wrong = (
        "../x.safetensors",
        "/etc/passwd",
        "missing.safetensors",
        "config.json",
        "",
        ".",
        1,
        None,
        ["x"],
        "x" * 300,
    )
    for _ in range(rng.choice((1, 1, 3))):
        index["weight_map"][rng.choice(names)] = rng.choice(wrong)
    file.write_text(json.dumps(index))
    return "the index's weight_map"


def _quantised(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    """What config.json says of quantisation, of any method, or of the method that the weights are of."""
    file = inputs / copied[0] / "config.json"
    config = json.loads(file.read_text())
    section = rng.choice(corpus.SECTIONS)
    if "quantization_config" in config and rng.random() < 0.7:
        section = config["quantization_config"]
    config["quantization_config"] = section
    for _ in range(rng.choice((1, 1, 2))):
        try:
            config["quantization_config"] = json.loads(damaged_json(rng, json.dumps(section).encode()))
        except (ValueError, RecursionError):
            continue
    file.write_text(json.dumps(config))
    return f"quantization_config of {section['quant_method']}"


def _family(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    file = inputs / "config.json"
    file.write_bytes(corpus.family_config(rng.randrange(10**6)))
    told = json.loads(file.read_text())["model_type"]
    _damage(rng, file)
    return f"a config.json of {told}"


def _nowhere(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    """A path is not what it should be."""
    path = inputs / rng.choice(copied)
    if path.is_dir() and rng.random() < 0.7:
        path = rng.choice(sorted(path.iterdir()))
    what = rng.choice(
        ("missing", "a folder", "a link to itself", "a link to nothing", "empty", "a pipe", "a link away")
    )
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a link to itself":
        path.symlink_to(path.name)
    elif what == "a link to nothing":
        path.symlink_to("nothing")
    elif what == "a link away":
        path.symlink_to("/proc/self/mem")
    elif what == "empty":
        path.touch()
    elif what == "a pipe":
        os.mkfifo(path)
    return f"{path.name} is {what}"


def _output(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    """What stands where the output goes."""
    out = inputs.parent / OUTPUTS
    what = rng.choice(("a file", "a folder", "a link to itself", "a full folder", "a file above", "a pipe"))
    for path in (out / "x", out / "x.json"):
        if what == "a file":
            path.write_text("x")
        elif what == "a folder":
            path.mkdir()
        elif what == "a link to itself":
            path.symlink_to(path.name)
        elif what == "a pipe":
            os.mkfifo(path)
        elif what == "a full folder":
            path.mkdir()
            (path / "kept").write_text("x")
    if what == "a file above":
        out.rmdir()
        out.write_text("x")
    return f"the output is {what}"


def _nothing(rng: Random, inputs: Path, copied: tuple[str, ...]) -> str:
    return "an option"


def _models(*names: str) -> Callable[[Random], tuple[str, ...]]:
    return lambda rng: (rng.choice(names), "a.txt")


def _with(*names: str) -> Callable[[Random], tuple[str, ...]]:
    return lambda rng: names


def _reading(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    """Any command that reads a model."""
    model = f"in/{copied[0]}"
    what = rng.choices(
        ("inspect", "plan", "compare", "score", "prune", "eval", "distill", "compress"), (4, 4, 1, 3, 4, 3, 2, 0.1)
    )[0]
    return options.command_on(rng, what, model, inputs)


def _costly(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    """A command that loads weights and tokenizer."""
    what = rng.choice(("score", "eval", "distill"))
    return options.command_on(rng, what, f"in/{copied[0]}", inputs)


def _texts(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    what = rng.choice(("score", "eval", "distill"))
    return options.command_on(rng, what, f"in/{copied[0]}", inputs, text=f"in/{copied[-1]}")


def _counting(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    """A command that reads config.json alone."""
    what = rng.choice(("inspect", "plan", "compare"))
    return options.command_on(rng, what, f"in/{copied[0]}", inputs)


def _cutting(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    return ["prune", f"in/{copied[0]}", "-o", "out/x", "--plan", "in/plan.json", *options.json_now_and_then(rng)]


def _scored(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    what = rng.choice(("plan", "prune"))
    output = ["-o", "out/x"] if what == "prune" or rng.random() < 0.5 else []
    return [
        what,
        "in/hybrid",
        "--budget",
        "350KiB",
        "--context",
        "64",
        "--scores",
        "in/scores.safetensors",
        *output,
        *options.json_now_and_then(rng),
    ]


def _reported(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    """A distillation whose curve goes into the report of the plan; the folder is an output, too."""
    shutil.move(inputs / "report", inputs.parent / OUTPUTS / "x.report")
    return [
        *("distill", "in/student", "--teacher", "in/hybrid", "--data", "in/a.txt", "-o", "out/x", "--steps", "1"),
        *("--report", "out/x.report", *corpus.TRAINING, *options.json_now_and_then(rng)),
    ]


def _recipe(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    return [
        "distill",
        "in/student",
        "--teacher",
        "in/hybrid",
        "-o",
        "out/x",
        "--recipe",
        "in/recipe.toml",
        *options.json_now_and_then(rng),
    ]


def _resumed(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    shutil.move(inputs / "run" / "out.work", inputs.parent / OUTPUTS)
    again = ["--overwrite"] if rng.random() < 0.15 else []
    line = corpus.distillation(Path(INPUTS), Path(OUTPUTS) / "out")
    return [*map(str, line), *again, *options.json_now_and_then(rng)]


def _optional(rng: Random, inputs: Path, copied: tuple[str, ...]) -> list[str]:
    what = rng.choice(("inspect", "plan", "compare", "score", "prune", "eval", "distill"))
    return options.command_with_options(rng, what, f"in/{copied[0]}", inputs)


ANY = ("hybrid", "llama", "sharded", "vision", "fp8", "blocks", *corpus.FAMILIES)

KINDS: dict[str, Kind] = {
    "config.json": Kind(5, _models(*ANY), _one_of("config.json"), _reading),
    "config.json of a family": Kind(
        4, lambda rng: (), _family, lambda rng, inputs, copied: _counting(rng, inputs, ("config.json",))
    ),
    "quantization_config": Kind(3, _models("llama", "hybrid", "fp8", "blocks"), _quantised, _reading),
    "weights": Kind(5, _models(*ANY), _weights, _reading),
    "companion": Kind(2, _models("companions"), _companion, _reading),
    "report": Kind(1, _with("hybrid", "student", "a.txt", "report"), _whole, _reported),
    "student": Kind(1, lambda rng: ("student", "hybrid", "a.jsonl", "a.txt", "recipe.toml"), _one_of(), _recipe),
    "index": Kind(2, _models("sharded"), _index, _reading),
    "tokenizer": Kind(
        4,
        _models("hybrid", "llama"),
        _one_of("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        _costly,
    ),
    "generation_config.json": Kind(
        1, _models("hybrid", "llama", "vision"), _one_of("generation_config.json"), _reading
    ),
    "text": Kind(
        4,
        lambda rng: ("hybrid", rng.choice(("a.txt", "a.jsonl", "a.json", "chat.jsonl", "a.csv", "a.parquet"))),
        _whole,
        _texts,
    ),
    "plan": Kind(3, _with("hybrid", "plan.bases.safetensors", "plan.json"), _whole, _cutting),
    "bases": Kind(1, _with("hybrid", "plan.json", "plan.bases.safetensors"), _whole, _cutting),
    "scores": Kind(3, _with("hybrid", "scores.safetensors"), _whole, _scored),
    "recipe": Kind(2, _with("hybrid", "student", "a.jsonl", "a.txt", "recipe.toml"), _whole, _recipe),
    "run": Kind(3, _with("hybrid", "student", "a.jsonl", "run"), _whole, _resumed),
    "path": Kind(3, lambda rng: (rng.choice(ANY), "a.txt"), _nowhere, _reading),
    "output": Kind(2, lambda rng: (rng.choice(ANY), "a.txt"), _output, _reading),
    "options": Kind(4, _with("llama", "a.txt"), _nothing, _optional),
}
"""The kinds of inputs."""
