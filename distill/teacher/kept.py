"""The parts of an FP8 teacher that are kept in bf16, as plain data without torch."""

import re
from dataclasses import dataclass
from typing import Final

from minitron.errors import MinitronError

ATTENTION: Final = "attention"
BEFORE: Final = "before-attention"
NOTHING: Final = "none"
"""What `parse_kept` reads beside numbers."""


@dataclass(frozen=True)
class Kept:
    """What of a teacher stays in bf16, beside embedding, output layer, router, conv1d and norms, which always do."""

    attention: bool = True
    """All of attention."""

    before_attention: bool = True
    """The linears of the last layer with a state before each attention layer, on which attention is most sensitive (the
    choice of NVIDIA's FP8 checkpoints of Nemotron 3 Nano)."""

    layers: frozenset[int] = frozenset()
    """Whole layers by number."""

    def __str__(self) -> str:
        words = [word for word, kept in ((ATTENTION, self.attention), (BEFORE, self.before_attention)) if kept]
        return ",".join([*words, *map(str, sorted(self.layers))]) or NOTHING


def parse_kept(typed: str) -> Kept:
    """`attention,before-attention,3,7-9`, or `none`; raises MinitronError for anything else."""
    words = [word.strip() for word in typed.split(",")]
    layers: set[int] = set()
    for word in words:
        if word in (ATTENTION, BEFORE) or (word == NOTHING and len(words) == 1):
            continue
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if found is None:
            raise MinitronError(
                f"--fp8-keep {word!r} names no part of a teacher; give {ATTENTION}, {BEFORE} and layer "
                f"numbers, separated by commas, or {NOTHING}."
            )
        layers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return Kept(ATTENTION in words, BEFORE in words, frozenset(layers))


DEFAULT: Final = Kept()
