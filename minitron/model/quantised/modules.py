"""Which tensors an entry of a config's list of modules means.

Methods spell their lists differently: names of modules (`lm_head`, `model.layers.0.mlp`), parts of them (`mlp.gate`),
wildcards (`model.layers.0*`), regular expressions (`re:.*gate$`), and classes (`Linear`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Final

from minitron.model.families import Rule

PROJECTIONS: Final = "<projections>"
"""Every linear inside a block, routers left out."""

EXPERTS: Final = "<experts>"
"""The linears of routed experts."""

_CLASSES: Final[Mapping[str, Callable[[Rule], bool]]] = {
    PROJECTIONS: lambda rule: rule.is_projection,
    EXPERTS: lambda rule: rule.is_projection and rule.per_expert,
    "Linear": lambda rule: rule.is_linear,
    "Embedding": lambda rule: rule.component == "embedding",
}
"""entry -> whether it means a rule's tensors, whatever they are called."""

_PREFIX: Final = re.compile(r"^(?:(?:model|backbone|transformer|language_model)\.)+")
"""In front of the layers' names: configs, files and engines differ in it."""

_REGEX: Final = re.compile(r"[\\^$()\[\]+|]")
"""What names of modules and wildcards do not hold."""


def is_class(entry: str) -> bool:
    """Whether an entry names a class of modules instead of modules by name."""
    return entry in _CLASSES


def modules_of(names: Iterable[str]) -> tuple[str, ...]:
    """What configs may call the modules that hold tensors of these names: with and without the model's prefix."""
    found = [name.removesuffix(".weight") for name in names]
    return tuple(dict.fromkeys([*found, *(_PREFIX.sub("", name) for name in found)]))


def means(entry: str, rule: Rule, modules: tuple[str, ...]) -> bool:
    """Whether an entry of a list means a tensor of `rule`, whose module goes by each of the names `modules`."""
    if is_class(entry):
        return _CLASSES[entry](rule)
    pattern = _pattern(entry)
    return any(pattern.search(name) is not None for name in modules)


@cache
def _pattern(entry: str) -> re.Pattern[str]:
    """The expression that is searched in a module's name."""
    if entry.startswith("re:"):
        return _compiled(f"^(?:{entry[3:]})", entry)
    if _REGEX.search(entry) or ".*" in entry:
        return _compiled(entry, entry)
    short = _PREFIX.sub("", entry).removesuffix(".weight").strip(".")
    # A name that begins at the model is one module's; any other may be the end or the middle of many.
    start = "^" if short != entry.removesuffix(".weight").strip(".") else r"(?:^|\.)"
    text = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in short)
    return re.compile(rf"{start}{text}(?:\.|$)")


def _compiled(text: str, entry: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error:
        return re.compile(re.escape(entry))
