"""What judging showed: shares with intervals, agreement between orders, and what was broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from judge.judging import Judged, Outcome
from judge.speaking import Reply

RESAMPLES: Final = 10_000

LEVEL: Final = 0.95
"""Of an interval: it leaves (1 - LEVEL) / 2 out at each end."""

OUTCOMES: Final[tuple[Outcome, ...]] = ("first", "tie", "second", "broken")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """A part of what was counted, with the interval that a bootstrap over it gives."""

    value: float
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Value and interval."""
        return {"value": self.value, "interval": list(self.interval)}


@dataclass
class Tally:
    """Outcomes of contests."""

    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.counts[outcome] += 1

    @property
    def total(self) -> int:
        """All contests, broken ones among them."""
        return sum(self.counts.values())

    def shares(self, seed: int = 0) -> dict[str, Share]:
        """Share of each outcome, and `margin`: wins less losses, from -1 to 1; broken ones are part of the whole.

        Percentile bootstrap over contests: the counts of a resample are multinomial."""
        import numpy as np

        total = max(self.total, 1)
        values = np.array([self.counts[name] for name in OUTCOMES]) / total
        if not self.total:
            return {name: Share(0.0, (0.0, 0.0)) for name in (*OUTCOMES, "margin")}
        drawn = np.random.default_rng(seed).multinomial(total, values, RESAMPLES) / total
        found = {str(name): Share(float(values[at]), _interval(drawn[:, at])) for at, name in enumerate(OUTCOMES)}
        margin = Share(float(values[0] - values[2]), _interval(drawn[:, 0] - drawn[:, 2]))
        return found | {"margin": margin}

    def to_json(self) -> dict[str, Any]:
        """Counts and shares."""
        shares = self.shares()
        return {
            "contests": self.total,
            **{_NAMES[name]: {"count": self.counts[name], **shares[name].to_json()} for name in OUTCOMES},
            "margin": shares["margin"].to_json(),
        }


_NAMES: Final[Mapping[Outcome, str]] = {"first": "wins", "tie": "ties", "second": "losses", "broken": "broken"}
"""Outcome -> what it is to the first answer, which is the student's."""


def share_of(counts: Sequence[int], worth: Sequence[float], seed: int = 0) -> Share:
    """The mean worth of what was counted in each class, with an interval from resampled counts."""
    import numpy as np

    total = sum(counts)
    if not total:
        return Share(0.0, (0.0, 0.0))
    shares, values = np.array(counts) / total, np.array(worth)
    drawn = np.random.default_rng(seed).multinomial(total, shares, RESAMPLES) @ values / total
    return Share(float(shares @ values), _interval(drawn))


def _interval(sample: Any) -> Interval:
    import numpy as np

    low, high = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass
class Results:
    """All that is counted of judged contests; what was said is not kept."""

    whole: Tally = field(default_factory=Tally)
    groups: dict[str, Tally] = field(default_factory=dict)
    qualities: dict[str, Tally] = field(default_factory=dict)
    """Quality -> contests in which it decided, in one order or the other."""

    verdicts: int = 0
    broken_verdicts: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """What was broken -> how often; the first MOST_REASONS kinds."""

    took_the_first: int = 0
    """Verdicts for the answer that was read first."""

    both: int = 0
    """Contests with two verdicts."""

    agreed: int = 0
    """Those of them in which both orders have the same winner."""

    empty: int = 0
    """Contests that an empty answer decided."""

    def add(self, judged: Judged) -> None:
        """One more contest."""
        outcome = judged.outcome
        self.whole.add(outcome)
        for group in judged.contest.groups:
            self.groups.setdefault(group, Tally()).add(outcome)
        for quality in judged.focus:
            self.qualities.setdefault(quality, Tally()).add(outcome)
        self.empty += not judged.verdicts
        for verdict in judged.verdicts:
            self.verdicts += 1
            self.took_the_first += verdict.took_the_first is True
            if verdict.winner is None:
                self.broken_verdicts += 1
                known = verdict.broken in self.reasons or len(self.reasons) < MOST_REASONS
                reason = verdict.broken if known else OTHER
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if judged.verdicts and outcome != "broken":
            self.both += 1
            self.agreed += outcome != "tie"

    @property
    def all_broken(self) -> bool:
        """Whether the judge never kept to the format."""
        return self.verdicts > 0 and self.broken_verdicts == self.verdicts

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ruled = self.verdicts - self.broken_verdicts
        return {
            **self.whole.to_json(),
            "decided_by_an_empty_answer": self.empty,
            "verdicts": self.verdicts,
            "broken_verdicts": self.broken_verdicts,
            "broken_reasons": dict(sorted(self.reasons.items(), key=lambda one: -one[1])),
            "orders_agree": None if not self.both else self.agreed / self.both,
            "took_the_first": None if not ruled else self.took_the_first / ruled,
            "by_group": {name: tally.to_json() for name, tally in self.groups.items()},
            "by_quality": {name: tally.to_json() for name, tally in self.qualities.items()},
        }


MOST_REASONS: Final = 50
OTHER: Final = "something else"


def results_of(judged: Iterable[Judged]) -> Results:
    """The counts of judged contests."""
    found = Results()
    for one in judged:
        found.add(one)
    return found


def lengths(student: Sequence[Reply], teacher: Sequence[Reply], seed: int = 0) -> dict[str, Any] | None:
    """Tokens to answer of both, and how many times the teacher's the student's are; None where they were not counted.

    The ratio is of the sums, with an interval from resampled prompts."""
    import numpy as np

    pairs = [
        (one.tokens, other.tokens)
        for one, other in zip(student, teacher, strict=True)
        if one.tokens is not None and other.tokens is not None
    ]
    if not any(other for _, other in pairs):
        return None
    tokens = np.array(pairs, dtype=np.float64)
    rng = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES // 10)
    for place in range(len(ratios)):
        sums = tokens[rng.integers(len(tokens), size=len(tokens))].sum(0)
        ratios[place] = sums[0] / max(sums[1], 1.0)
    return {
        "prompts": len(pairs),
        "student_mean": float(tokens[:, 0].mean()),
        "teacher_mean": float(tokens[:, 1].mean()),
        "ratio": float(tokens[:, 0].sum() / tokens[:, 1].sum()),
        "interval": list(_interval(ratios)),
    }


def answer_facts(replies: Sequence[Reply]) -> dict[str, Any]:
    """How one model answered."""
    thought = [reply.thinking_tokens for reply in replies if reply.thinking_tokens]
    return {
        "answers": len(replies),
        "empty": sum(not reply.text.strip() for reply in replies),
        "cut_off": sum(not reply.finished for reply in replies),
        "cut_thinking": sum(reply.cut_thinking for reply in replies),
        "mean_thinking_tokens": sum(thought) / len(thought) if thought else None,
    }
