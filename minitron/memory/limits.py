"""Limits: what a model may come to beside its memory: parameters, those that a token uses, and the speed of serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters, format_seconds

MEMORY: Final = "memory"
"""What the budget of bytes is called among limits."""


@dataclass(frozen=True)
class Sort:
    """One kind of limit."""

    flag: str
    """As typed."""

    side: Literal["most", "least"]
    """Whether it is the most or the least that there may be."""

    told: str
    """What a model has of it, with `{}` for the number."""

    number: Any
    """The number in words."""

    unit: str
    """Of the number in JSON."""

    timed: bool = False
    """Whether it follows from the speed of a GPU."""


def _rate(value: float) -> str:
    return f"{value:,.4g} tokens/s"


SORTS: Final = {
    MEMORY: Sort("--gpu or --budget", "most", "needs {}", format_bytes, "bytes"),
    "parameters": Sort("--params", "most", "has {} parameters", format_parameters, "parameters"),
    "active_parameters": Sort("--active-params", "most", "uses {} parameters a token", format_parameters, "parameters"),
    "latency": Sort("--max-latency", "most", "answers after {}", format_seconds, "s", timed=True),
    "throughput": Sort("--min-throughput", "least", "writes {}", _rate, "tokens_per_s", timed=True),
}
"""name -> the kind of limit."""


@dataclass(frozen=True)
class Limits:
    """What a model may come to; None for what is not limited."""

    parameters: int | None = None
    """The most parameters, those of the multi-token-prediction block not among them."""

    active_parameters: int | None = None
    """The most that one token uses, embeddings included: of routed experts those that it is sent to."""

    latency: float | None = None
    """The most seconds from prompts that come together to the last token of their answers (roofline)."""

    throughput: float | None = None
    """The fewest tokens of answers a second, of all sequences together (roofline)."""

    prompt: int = 0
    """Tokens of the workload's context that are prompt; the rest is answer."""

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if value <= 0:
                raise MinitronError(f"{SORTS[name].flag} {value:g} allows nothing; give a number above 0.")

    @property
    def given(self) -> dict[str, float]:
        """name in SORTS -> the limit, for those that there are."""
        values = {name: getattr(self, name) for name in SORTS if name != MEMORY}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def timed(self) -> bool:
        """Whether a limit follows from the speed of a GPU."""
        return any(SORTS[name].timed for name in self.given)


UNLIMITED: Final = Limits()
"""Nothing but memory is limited."""


@dataclass(frozen=True)
class Held:
    """One limit in a search."""

    name: str
    """In SORTS."""

    limit: float

    parent: float
    """What the model itself comes to."""

    excluded: int
    """Architectures that keep every other limit and not this one."""

    binds: bool
    """Whether one of those is worth more than the best that keeps all."""

    def to_json(self, chosen: float) -> dict[str, Any]:
        """One object; `chosen` is what the chosen candidate comes to."""
        unit = SORTS[self.name].unit
        return {
            "name": self.name,
            "unit": unit,
            "most": self.limit if SORTS[self.name].side == "most" else None,
            "least": self.limit if SORTS[self.name].side == "least" else None,
            "parent": self.parent,
            "chosen": chosen,
            "excluded": self.excluded,
            "binds": self.binds,
        }

    def told(self, chosen: float) -> str:
        """The limit, what the chosen one comes to and whether it binds, in words."""
        return told_of(self.name, self.limit, self.parent, chosen, binds=self.binds)


def told_of(name: str, limit: float, parent: float, chosen: float, *, binds: bool) -> str:
    """`parameters: 6.98 B of at most 7 B (the model 8.89 B); binds`."""
    sort = SORTS[name]
    told = f"{name.replace('_', ' ')}: {sort.number(chosen)} of at {sort.side} {sort.number(limit)}"
    return f"{told} (the model {sort.number(parent)}){'; this limit binds' if binds else ''}"


def excess(name: str, value: Any, limit: float) -> Any:
    """By what factor a value, or each of many, breaks a limit: at most 1 where it keeps it."""
    return value / limit if SORTS[name].side == "most" else limit / value


def breach(name: str, value: float, limit: float) -> str:
    """By how much a value breaks a limit, as a clause: `has 7.5 B parameters, 500.000 M more than --params`."""
    sort = SORTS[name]
    more = "more" if sort.side == "most" else "fewer"
    if name == "latency":
        more = "later"
    return f"{sort.told.format(sort.number(value))}, {sort.number(abs(value - limit))} {more} than {sort.flag} allows"
