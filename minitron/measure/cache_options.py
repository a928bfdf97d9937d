"""The request of a simulated cache: formats of keys, values and states, as plain data without torch."""

from __future__ import annotations

from dataclasses import dataclass

from minitron.errors import MinitronError, require_known, require_least
from minitron.memory.formats import FORMATS
from minitron.quantise.rows import HOW, How, formats_that_round


@dataclass(frozen=True)
class CacheOptions:
    """In what a model's cache is simulated; nothing where neither format is given."""

    kv: str | None = None
    """Format of keys and values, each rounded to nearest once; None as they are."""

    ssm_state: str | None = None
    """Format of recurrent states, each rounded again at every token; None for fp32."""

    rounding: How | None = None
    """How states are rounded: to nearest or stochastically; None measures both."""

    seed: int = 0
    """Of stochastic rounding."""

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--kv", self.kv, formats_that_round("kv")),
            ("--ssm-state", self.ssm_state, formats_that_round("state")),
        ):
            if value is not None and value not in known:
                raise MinitronError(f"{flag} cannot be {value}; choose {', '.join(known)}.")
        if self.rounding is not None:
            require_known(self, {"rounding": HOW})
        require_least(self, {"seed": 0})
        if self.rounding is not None and self.ssm_state is None:
            raise MinitronError("--state-rounding says how states are rounded; add --ssm-state int8, or leave it out.")

    @property
    def simulated(self) -> bool:
        """Whether anything is."""
        return self.kv is not None or self.ssm_state is not None

    @property
    def ways(self) -> tuple[How, ...]:
        """The ways of rounding that are measured."""
        if self.rounding is not None:
            return (self.rounding,)
        return ("nearest",) if self.ssm_state is None or FORMATS[self.ssm_state].bits == 32 else HOW
