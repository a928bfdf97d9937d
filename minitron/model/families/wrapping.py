"""How a language model inside a larger model becomes a family: its tensors under the larger model's names, what enters
its residual stream beside the embedding, and what is carried along as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN, Axis, number_of
from minitron.model.families.family import Config, Extra, Family, Rule
from minitron.model.families.nesting import PROJECTOR, TOWER, Nesting

PROJECTOR_FFN: Final = "projector_ffn"
"""What a projector of two linears has between them, where that is as wide as the residual stream."""

_BETWEEN: Final = Axis(
    PROJECTOR_FFN,
    "projector's inner width",
    default=lambda config: number_of(config, "hidden_size"),
    follows=HIDDEN,
)

INSIDE: Final = "model.language_model."
AROUND: Final = "language_model.model."

Size = Callable[[Config], int]
"""config.json -> a number."""


@dataclass(frozen=True)
class Wrapper:
    """A type of model that holds a language model beside what sees or hears."""

    model_type: str
    text: str
    """The type of the language model where its config does not say."""

    carried: tuple[str, ...]
    """The modules whose tensors are carried as they are, but for those that `projector` names."""

    projector: tuple[Rule, ...]
    """The tensors that write what is seen or heard to the residual stream, and those that make what they read where
    their width follows it.  Shapes may name `sizes`, names one in braces for so many tensors, numbered from 0, and
    `when` one that is then not 0."""

    sizes: Mapping[str, Size]
    """word in the projector's shapes and names -> how large it is."""

    towers: Mapping[str, Size]
    """component -> how many numbers are carried for it; none where that is 0."""

    families: Mapping[str, str] = field(default_factory=dict)
    """type of the language model -> the type of the family that it is of, where the first has no class of its own that
    predicts tokens."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What absent keys at the top of config.json mean for `projector`."""

    held: Literal["model.language_model.", "language_model.model."] = INSIDE
    """What the names of the language model's tensors begin with in memory, in transformers' class of the larger model.
    On disk both stand for either, and the names that the language model has by itself too."""

    keys: tuple[str, ...] = ("text_config",)
    flat: bool = False
    ties: Literal["top", "either", "inside"] = "top"
    copies: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """As in Nesting."""

    axes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """axis -> what its row says inside this model that it does not say in the family of the language model."""

    equal: tuple[tuple[str, str], ...] = ()
    """As in Family."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """key at the top of config.json -> what it would take to honour it: configs that say something under it are
    refused by name."""

    summary: str = ""
    """Which models are of it; for the table in README.md."""


def family_inside(
    wrapper: Wrapper, config: Config, families: Mapping[str, Family], absent: Mapping[str, Any]
) -> Family:
    """The family of the language model in `config`, a config.json document of a wrapper's type.

    `absent`: type of a language model -> what absent sizes mean.  Raises MinitronError for a language model that none
    of `families` reads."""
    for key, why in wrapper.refused.items():
        if config.get(key):
            raise MinitronError(
                f"config.json: {key} says something, which Minitron does not support for {wrapper.model_type} models "
                f"({why}); use a model without it."
            )
    nesting = Nesting(wrapper.text, wrapper.keys, wrapper.flat, wrapper.ties, wrapper.copies, wrapper.ignored)
    place = nesting.place(config)
    named = str((None if place is config else place.get("model_type")) or wrapper.text)
    model_type = wrapper.families.get(named, named)
    inner = families.get(model_type)
    if inner is None:
        raise MinitronError(
            f"config.json: the language model inside this {wrapper.model_type} model is of the type {named!r}, which "
            "Minitron does not support; `minitron inspect --list` prints the types that it does."
        )
    nesting = replace(nesting, model_type=model_type, defaults=absent.get(named, {}))
    return _wrapped(wrapper, inner, nesting, config)


def _wrapped(wrapper: Wrapper, inner: Family, nesting: Nesting, config: Config) -> Family:
    projector = _projector(wrapper, config)
    rules = {kind: tuple(_renamed(rule, wrapper.held) for rule in own) for kind, own in inner.rules.items()}
    counts = {component: size(config) for component, size in wrapper.towers.items()}
    for component, count in counts.items():
        if count < 0:
            raise MinitronError(f"config.json: the {component} comes to {count} numbers; correct its config.")
    towers = tuple(Rule(component, str(count), component) for component, count in counts.items() if count)
    axes = dict(inner.axes)
    if any(PROJECTOR_FFN in rule.axes for rule in projector):
        axes[PROJECTOR_FFN] = _BETWEEN
    axes |= {name: replace(axes[name], **own) for name, own in wrapper.axes.items() if name in axes}
    cut = "|".join(f"(?:{rule.pattern.expression})" for rule in projector)
    modules = "|".join(map(re.escape, wrapper.carried))
    carried = Extra(
        rf"(?!(?:{cut})$)(?:model\.)?(?:{modules})(?:\..*)?",
        "tensors that see or hear",
        carried=True,
        counted=True,
    )
    return replace(
        inner,
        name=wrapper.model_type,
        model_types=(wrapper.model_type,),
        rules={**rules, PROJECTOR: projector, **({TOWER: towers} if towers else {})},
        mtp_rules=tuple(_renamed(rule, wrapper.held) for rule in inner.mtp_rules),
        axes=axes,
        older_names={rf"((?:language_model\.)?){old}": rf"\1{_later(new)}" for old, new in inner.older_names.items()},
        equal=(*inner.equal, *wrapper.equal),
        extras=(carried, *(_moved(extra) for extra in inner.extras)),
        nesting=nesting,
        summary=wrapper.summary,
    )


def _projector(wrapper: Wrapper, config: Config) -> tuple[Rule, ...]:
    """The rules of the projector, numbers in the place of the wrapper's own words; raises MinitronError for sizes below
    1."""

    def number(found: re.Match[str]) -> str:
        if found[0] not in wrapper.sizes:
            return found[0]
        size = wrapper.sizes[found[0]](config)
        if size < 1:
            raise MinitronError(
                f"config.json: what the projector reads comes to {size} features; correct the config of what sees or "
                "hears."
            )
        return str(size)

    said = {**wrapper.defaults, **config}
    found = []
    for rule in wrapper.projector:
        counted = wrapper.sizes.get(rule.when)
        if rule.when and not (said.get(rule.when) if counted is None else counted(config)):
            continue
        own = replace(rule, shape=re.sub(r"[a-z_]+", number, rule.shape), when="")
        word = next(iter(rule.pattern.axes), None)
        if word is None:
            found.append(own)
        else:
            places = range(wrapper.sizes[word](config))
            found += [replace(own, name=own.name.replace(f"{{{word}}}", str(place))) for place in places]
    return tuple(found)


def _renamed(rule: Rule, held: str) -> Rule:
    """A rule of the language model under the names that it may have inside the larger model."""
    return replace(
        rule,
        name=_outer(rule.name, held),
        tied_to=rule.tied_to and _outer(rule.tied_to, held),
        # In memory it is by itself.
        memory=rule.memory or rule.name,
    )


def _outer(name: str, held: str) -> str:
    """A name with every dialect of what it may begin with, that of the larger model in memory first."""
    root, rest = name[1:].split(").", 1) if name.startswith("(") else name.split(".", 1)
    roots = root.split("|")
    if "model" in roots:
        places = [held, INSIDE, AROUND, *(f"language_model.{one}." for one in roots), *(f"{one}." for one in roots)]
    else:
        places = [f"{one}." for one in roots] + [f"language_model.{one}." for one in roots]
        places = places if held == INSIDE else places[::-1]
    return f"({'|'.join(dict.fromkeys(places))}){rest}"


def _later(replacement: str) -> str:
    """What a match is replaced with where another group stands before its own."""
    return re.sub(r"\\(\d)", lambda found: rf"\{int(found[1]) + 1}", replacement)


def _moved(extra: Extra) -> Extra:
    inside = extra.pattern.replace(r"model\.", r"model\.(?:language_model\.)?", 1)
    return replace(extra, pattern=rf"(?:language_model\.)?(?:{inside})")
