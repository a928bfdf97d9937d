"""Several teachers, each for text of its domain: whose sequences are whose, and what was measured of all of them.

Shape letters: S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.teacher.teacher_source import Reference
from distill.text.data import Text
from minitron.errors import MinitronError
from minitron.locks import resolved
from minitron.measure.quality import Quality
from minitron.measure.records import Source


@dataclass(frozen=True)
class Domains:
    """Which teacher every sequence learns from; 0 is that of text without a domain."""

    names: tuple[str, ...]
    """The domains of the teachers from 1 on."""

    folders: tuple[Path, ...]
    """Their checkpoints."""

    of_part: tuple[int, ...]
    """The number of the teacher of each source of text."""

    def of_held_out(self, text: Text) -> NDArray[np.int64]:
        """[S]: that of each held-out sequence, 0 for those of a file of their own."""
        if not text.held_out:
            return np.zeros(len(text.validation), dtype=np.int64)
        return np.repeat(np.asarray(self.of_part, dtype=np.int64), text.held_out)

    def own_text(self, text: Text, teacher: int) -> Text:
        """The text with the held-out sequences of one teacher alone; all of them where it has none."""
        mine = self.of_held_out(text) == teacher
        return replace(text, validation=text.validation[mine]) if mine.any() else text


@dataclass(frozen=True)
class Faculty:
    """The teachers of a run beside the first, and whose text is whose."""

    domains: Domains
    teachers: tuple[Reference, ...]


def domains_of(sources: Sequence[Source], teacher: Path, teachers: Mapping[str, Path]) -> Domains | None:
    """The domains of a blend of text; None where there is one teacher for all.

    Raises MinitronError where a domain has no teacher, or a teacher no text."""
    unknown = next((source for source in sources if source.domain and source.domain not in teachers), None)
    if unknown is not None:
        raise MinitronError(
            f"{unknown.place} is of the domain {unknown.domain}, which has no teacher; give --teacher "
            f"{unknown.domain}=FOLDER, or drop the domain."
        )
    idle = next((name for name in teachers if all(source.domain != name for source in sources)), None)
    if idle is not None:
        raise MinitronError(
            f"the teacher of {idle} has no text; give --data {idle}=PATH, or drop --teacher {idle}={teachers[idle]}."
        )
    others = {name: folder for name, folder in teachers.items() if resolved(folder) != resolved(teacher)}
    if not others:
        return None
    numbers = {name: number for number, name in enumerate(others, 1)}
    of_part = tuple(numbers.get(source.domain, 0) for source in sources)
    return Domains(tuple(others), tuple(others.values()), of_part)


def joined(domains: Domains, text: Text, measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was measured of all teachers before the first step, in the place of what was measured of the first: its own,
    with the perplexity of every held-out sequence's own teacher, and the drift of the others by domain."""
    counts = np.bincount(domains.of_held_out(text), minlength=len(measured))
    nats = sum(count * log(each["perplexity_teacher"]) for count, each in zip(counts.tolist(), measured, strict=True))
    drifts = {name: each["drift"] for name, each in zip(domains.names, measured[1:], strict=True)}
    return measured[0] | {"perplexity_teacher": exp(nats / max(int(counts.sum()), 1)), "drifts": drifts}


def pooled(parts: Sequence[Quality]) -> Quality:
    """The quality on all sequences, from those on groups of sequences of one length."""
    if len(parts) == 1:
        return parts[0]
    tokens = sum(part.tokens for part in parts)

    def mean(values: Iterable[float | None]) -> float:
        return sum(part.tokens * (value or 0.0) for part, value in zip(parts, values, strict=True)) / tokens

    return Quality(
        tokens,
        exp(mean(log(part.perplexity) for part in parts)),
        mean(part.kl_to_teacher for part in parts),
        mean(part.top1_agreement for part in parts),
    )
