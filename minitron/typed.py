"""Values from files of ours, held against the types that they should have."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from minitron.errors import MinitronError

_WORDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def misfit(value: Any, wanted: Any, place: str = "") -> str:
    """What is wrong with a value of a document that should be of the type `wanted`; empty where nothing is.

    Types are those of annotations: int, float, str, bool, None, Any, Literal, unions, lists, tuples, mappings with keys
    that are texts, and dataclasses, whose fields are the keys of an object."""
    told = f"{place} is" if place else "it is"
    origin = get_origin(wanted)
    if wanted is Any:
        return ""
    if origin in (Union, types.UnionType):
        found = [misfit(value, one, place) for one in get_args(wanted)]
        # That of the alternative which is of the same kind says most.
        return "" if "" in found else next((one for one in found if not one.startswith(told)), found[0])
    if origin is Literal:
        return "" if value in get_args(wanted) else f"{told} {_shown(value)}, not one of {', '.join(get_args(wanted))}"
    if wanted in _WORDS:
        return "" if _is(value, wanted) else f"{told} {_shown(value)}, not {_WORDS[wanted]}"
    if is_dataclass(wanted):
        return _of_fields(value, wanted, place)
    if origin in (dict, Mapping):
        return _of_mapping(value, get_args(wanted)[1], place)
    return _of_sequence(value, wanted, place)


def require(value: Any, wanted: Any, file: object, remedy: str) -> None:
    """Raise MinitronError where what a file holds is not of the type `wanted`."""
    if wrong := misfit(value, wanted):
        raise MinitronError(f"{file} is damaged ({wrong}); {remedy}.")


def _is(value: Any, wanted: Any) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _of_fields(value: Any, wanted: Any, place: str) -> str:
    if not isinstance(value, Mapping):
        return f"{place or 'it'} is {_shown(value)}, not an object"
    hints, known = get_type_hints(wanted), {field.name: field for field in fields(wanted)}
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            return f"{_inside(place, name)} is missing"
    for name, inner in value.items():
        if name not in known:
            return f"{_inside(place, name)} is unknown"
        if wrong := misfit(inner, hints[name], _inside(place, name)):
            return wrong
    return ""


def _of_mapping(value: Any, wanted: Any, place: str) -> str:
    if not isinstance(value, Mapping):
        return f"{place or 'it'} is {_shown(value)}, not an object"
    return next((wrong for key, one in value.items() if (wrong := misfit(one, wanted, _inside(place, key)))), "")


def _of_sequence(value: Any, wanted: Any, place: str) -> str:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"{place or 'it'} is {_shown(value)}, not a list"
    each = get_args(wanted)
    if get_origin(wanted) is tuple and each[-1:] != (...,):
        if len(value) != len(each):
            return f"{place or 'it'} has {len(value)} entries, not {len(each)}"
    else:
        each = each[:1] * len(value)
    pairs = enumerate(zip(value, each, strict=True))
    return next((wrong for at, (one, kind) in pairs if (wrong := misfit(one, kind, _inside(place, at)))), "")


def _inside(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _shown(value: Any) -> str:
    return f"{value!r:.40}"
