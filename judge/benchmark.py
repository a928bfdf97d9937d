"""Preference pairs of published benchmarks, by which a judge is judged itself: the better answer of each is known.

layout         fields of a row (read from the published files)
RewardBench    `prompt`, `chosen`, `rejected` (texts), `subset`
RM-Bench       `prompt`, `chosen`, `rejected` (three styles each: concise, detailed, detailed with Markdown), `domain`
RMB            `conversation_input`, `chosen.answer`, `reject.answer`, `category_path`
HelpSteer3     `context`, `response1`, `response2`, `overall_preference` (-3 to 3, below 0 for the first), `domain`

In each contest the better answer is the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from judge.contests import Contest
from judge.judging import Judged
from judge.questions import as_question, refuse_unseen
from judge.results import Results, Share, share_of
from minitron.errors import MinitronError
from minitron.measure.records import Source, no_text
from minitron.measure.rows import rows

Pair = tuple[Any, str, str, tuple[str, ...]]
"""The question, the better answer, the worse one, and what it is counted with."""

_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": ("mt-bench-hard", "llmbar-natural", "llmbar-adver-"),
    "Safety": ("refusals-", "xstest-", "donotanswer"),
    "Reasoning": ("math-prm", "hep-"),
}
"""Sections of RewardBench, by how the names of their subsets begin."""

_STYLES: Final = ("hard", "normal", "easy")
"""Of RM-Bench: the better answer in a plainer style than the worse one, in the same, in a richer one."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a benchmark."""

    layout: str
    contests: tuple[Contest, ...]

    without_preference: int = 0
    """Rows in which neither answer is the better one, which are left out."""


def read_benchmark(path: Path, samples: int | None = None) -> Pairs:
    """The pairs of a file or folder, of `samples` of its rows, spread evenly; raises MinitronError where a row is of no
    layout, of another than the first, or is no text."""
    found: list[list[Contest]] = []
    layout, skipped = "", 0
    for file in Source(str(path)).files():
        for row in rows(file):
            if row.flaw or not isinstance(row.value, dict):
                raise MinitronError(f"{row.where} {row.flaw or 'is no object'}; fix or remove it.")
            refuse_unseen(row.where, row.value)
            own = next((name for name, (fields, _) in _LAYOUTS.items() if fields <= row.value.keys()), "")
            if not own or (layout and own != layout):
                raise MinitronError(
                    f"{row.where} is no pair of {layout or ', '.join(_LAYOUTS)}: it has {', '.join(row.value)[:120]}; "
                    "give files of one layout."
                )
            layout = own
            contests = [_contest(row.where, pair) for pair in _pairs(row.where, own, row.value)]
            skipped += not contests
            found += [contests] if contests else []
    if not found:
        raise MinitronError(f"{path} holds no pairs; give another file.")
    if samples is not None and samples < len(found):
        found = [found[place * len(found) // samples] for place in range(samples)]
    return Pairs(layout, tuple(contest for contests in found for contest in contests), skipped)


def _pairs(where: str, layout: str, row: Mapping[str, Any]) -> list[Pair]:
    try:
        return list(_LAYOUTS[layout][1](row))
    except (TypeError, KeyError, ValueError) as error:
        raise MinitronError(f"{where} is no pair of {layout} ({error}); fix or remove it.") from None


def _contest(where: str, pair: Pair) -> Contest:
    question, better, worse, groups = pair
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    if not isinstance(question, list) or not all(isinstance(message, dict) for message in question):
        raise MinitronError(f"{where} has a prompt that is neither text nor messages; fix or remove it.")
    for answer in (better, worse):
        if not isinstance(answer, str):
            raise MinitronError(f"{where} has an answer that is no text; fix or remove it.")
        if flaw := no_text(answer):
            raise MinitronError(f"{where} {flaw}; fix or remove it.")
    return Contest(as_question(where, question), (better, worse), where, groups)


def _reward_bench(row: Mapping[str, Any]) -> Iterator[Pair]:
    subset = str(row["subset"])
    section = next((name for name, starts in _SECTIONS.items() if subset.startswith(starts)), "")
    yield row["prompt"], row["chosen"], row["rejected"], (*([section] if section else []), subset)


def _rm_bench(row: Mapping[str, Any]) -> Iterator[Pair]:
    better, worse = row["chosen"], row["rejected"]
    if not (isinstance(better, list) and isinstance(worse, list) and len(better) == len(worse) > 0):
        raise ValueError("chosen and rejected are no lists of as many styles")
    for one, chosen in enumerate(better):
        for other, rejected in enumerate(worse):
            style = _STYLES[1 + (one > other) - (one < other)]
            yield row["prompt"], chosen, rejected, (str(row.get("domain", "")), f"style: {style}")


def _rmb(row: Mapping[str, Any]) -> Iterator[Pair]:
    path = [part for part in str(row.get("category_path", "")).split("/") if part and part != "Pairwise_set"]
    yield row["conversation_input"], row["chosen"]["answer"], row["reject"]["answer"], tuple(path[:2])


def _help_steer(row: Mapping[str, Any]) -> Iterator[Pair]:
    preference = row["overall_preference"]
    if not isinstance(preference, int | float):
        raise ValueError("overall_preference is no number")
    one, other = row["response1"], row["response2"]
    if preference:
        better, worse = (one, other) if preference < 0 else (other, one)
        yield row["context"], better, worse, (str(row.get("domain", "")),)


def _plain(row: Mapping[str, Any]) -> Iterator[Pair]:
    """Rows of preference training: `chosen` and `rejected`, texts or conversations that differ in the last message."""
    better, worse, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(better, list):
        prompt = better[:-1] if prompt is None else prompt
        better, worse = better[-1]["content"], worse[-1]["content"]
    yield prompt, better, worse, ()


_LAYOUTS: Final[Mapping[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Iterator[Pair]]]]] = {
    "RMB": (frozenset({"conversation_input", "chosen", "reject"}), _rmb),
    "HelpSteer3": (frozenset({"context", "response1", "response2", "overall_preference"}), _help_steer),
    "RewardBench": (frozenset({"prompt", "chosen", "rejected", "subset"}), _reward_bench),
    "RM-Bench": (frozenset({"prompt", "chosen", "rejected", "domain"}), _rm_bench),
    "chosen and rejected": (frozenset({"chosen", "rejected"}), _plain),
}
"""Name -> (the fields by which it is known, what reads a row); the first that fits."""


@dataclass
class Accuracy:
    """How often a judge is right, where broken verdicts are wrong ones."""

    results: Results = field(default_factory=Results)

    right: list[int] = field(default_factory=list)
    """Of each contest, how many of its two verdicts are right."""

    groups: dict[str, list[int]] = field(default_factory=dict)

    def add(self, judged: Judged) -> None:
        """One more contest."""
        self.results.add(judged)
        if judged.verdicts:
            right = sum(verdict.winner == 0 for verdict in judged.verdicts)
        else:
            # An empty answer is decided without the judge; two are nobody's.
            right = {"first": 2, "tie": 1}.get(judged.outcome, 0)
        self.right.append(right)
        for group in judged.contest.groups:
            self.groups.setdefault(group, []).append(right)

    def to_json(self) -> dict[str, Any]:
        """Accuracy over both orders, and of pairs that are right in both."""
        found = self.results.to_json()
        kept = ("verdicts", "broken_verdicts", "broken_reasons", "orders_agree", "took_the_first")
        return {
            "pairs": len(self.right),
            "accuracy": _mean(self.right).to_json(),
            "right_in_both_orders": _mean([2 * (one == 2) for one in self.right]).to_json(),
            **{name: found[name] for name in kept},
            "decided_by_an_empty_answer": found["decided_by_an_empty_answer"],
            "by_group": {
                name: {"pairs": len(right), "accuracy": _mean(right).to_json()} for name, right in self.groups.items()
            },
        }


def _mean(right: Sequence[int]) -> Share:
    return share_of([right.count(number) for number in range(3)], [0.0, 0.5, 1.0])
