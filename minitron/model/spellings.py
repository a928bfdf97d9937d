"""Names of stored tensors that are not those of the rules, and under which transformers finds a tensor all the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from minitron.errors import MinitronError
from minitron.model.dims import Name
from minitron.model.families import Family, Rule
from minitron.model.headers import read_headers, same_numbers


def known_as(names: Iterable[str], family: Family, knows: Callable[[str], bool], *, tied: bool) -> dict[str, str]:
    """Stored name -> the name that a rule knows, where the two differ.  `knows` says whether a name is known.

    A checkpoint of the base model alone has its names without its prefix (`layers.0...`), as embedding models often do.
    Of an output layer that is `tied` to the embedding either may be stored, and a family may have had other names."""
    outside = family.rules["model"]
    names = list(names)
    embedding = next(rule for rule in outside if rule.component == "embedding")
    prefix = f"{embedding.pattern.format({}).partition('.')[0]}."
    found = {}
    if not any(name.startswith(prefix) for name in names):
        found = {name: prefix + name for name in names if not knows(name) and knows(prefix + name)}
    for pattern, name in family.older_names.items():
        found |= {one: re.sub(pattern, name, one) for one in names if re.fullmatch(pattern, one)}
    stored = {found.get(name, name) for name in names}
    for rule in outside if tied else ():
        head = rule.pattern.format({})
        if rule.tied_to and head in stored and _stored(rule.tied_to, stored) is None:
            found[head] = Name(rule.tied_to).format({})
    return found


def has_head(stored: Iterable[str], outside: Sequence[Rule]) -> bool:
    """Whether an output layer is among the stored tensors."""
    return any(rule.tied_to and _stored(rule.name, stored) is not None for rule in outside)


def differing_head(stored: Mapping[str, tuple[Path, str]], outside: Sequence[Rule]) -> bool:
    """Whether an output layer is stored beside the embedding to which config.json ties it, with other numbers.

    `stored`: name -> (file, its name there).  Files that cannot be read say nothing here: those who read them do."""
    for rule in outside:
        names = [_stored(name, stored) if name else None for name in (rule.tied_to and rule.name, rule.tied_to)]
        if None not in names:
            (head, name), (embedding, other) = (stored[name] for name in names if name is not None)
            try:
                if not same_numbers(read_headers(head)[name], read_headers(embedding)[other]):
                    return True
            except (MinitronError, KeyError):
                return False
    return False


def _stored(pattern: str, names: Iterable[str]) -> str | None:
    """The name among `names` that a rule's name matches."""
    return next((name for name in names if Name(pattern).match(name) is not None), None)
