"""Names of options that people may have typed before: they work for one more version, with a warning, and stand in no
help.  A command line is written anew before it is read."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from minitron.errors import MinitronError

_SERVING: Final = {"--batch": "--concurrency", "--prompt": "--prompt-tokens"}
_SCORING: Final = {"--scoring-dtype": "--dtype", "--scoring-seed": "--seed", "--select": "--no-rotate"}
_FORMATS: Final = {f"--student-{name}": f"--{name}" for name in ("format", "keep", "kv", "round", "scales")}
_ANSWERS: Final = ("max-tokens", "max-thinking-tokens", "temperature", "top-p", "seed")

OLD_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "plan": _SERVING,
    "compare": _SERVING,
    "prune": _SERVING | _SCORING,
    "compress": _SERVING
    | _SCORING
    | {"--precision": "--dtype", "--judge": "--trial-text", "--judge-samples": "--trial-samples"},
    "score": {"--layers": "--layer-scores"},
    "distill": _FORMATS | {"--precision": "--dtype", "--validation": "--text", "--micro-batch": "--batch-size"},
    "eval": {"--against": "--teacher"},
    "judge": {"--against": "--teacher"} | {f"--{name}": f"--answer-{name.removeprefix('max-')}" for name in _ANSWERS},
    "export": {"--type": "--format", "--gguf": "--output"},
    "demo": {"--keep": "--share"},
}
"""Command -> old name -> the name it has now."""

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def renamed(command: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line with the names of today, and old name -> new for those that were typed.

    Raises MinitronError where two names that are one by now are given different values."""
    known, told, found = OLD_NAMES.get(command, _NONE), dict[str, str](), list[str]()
    values: dict[str, tuple[str, str]] = {}
    plain = False
    for at, word in enumerate(arguments):
        plain = plain or word == "--"
        name, equals, value = word.partition("=")
        if plain or name not in known:
            found.append(word)
            continue
        new = told[name] = known[name]
        given = value if equals else next(iter(arguments[at + 1 : at + 2]), "")
        before, first = values.setdefault(new, (name, given))
        if before != name and first != given:
            raise MinitronError(f"{before} and {name} are one option by now; give {new} once.")
        found.append(f"{new}={value}" if equals else new)
    return found, told


def warning(old: str, new: str) -> str:
    """What is said of an old name."""
    return f"Warning: {old} is called {new} by now; the old name goes with the next version."
