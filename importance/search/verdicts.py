"""Verdicts: the result of each sieve for every measured candidate, and why it was kept or dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from importance.search.damage import DamageModel, Heldout
from importance.search.trial import Trial
from minitron.search.candidate import Candidate
from minitron.search.search import SearchResult
from minitron.search.sweep import CUT_ALONE, FORMATS_ALONE

Entry = tuple[Candidate, str, float | None, Trial]
"""What was measured, why, what was predicted, and what came of it."""


@dataclass(frozen=True)
class Verdict:
    """What the sieves said of one measured candidate."""

    candidate: Candidate

    origin: str
    """Why it was measured."""

    first_rank: int
    """Its place, from 1, among all that fit by what sieve 1 can tell: effective parameters."""

    predicted: float | None
    """The damage model's loss for it before it was measured; None where there was no model yet."""

    predicted_rank: int | None
    """Its place among all that fit by the last model."""

    measured: Trial

    measured_rank: int
    """Its place among all that were measured."""

    kept: bool
    """Whether it is among the candidates that came back."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """One object; the candidate by its sizes and layers."""
        return {
            "sizes": dict(self.candidate.sizes),
            "kept_layers": list(self.candidate.kept),
            "formats": {} if self.candidate.formats is None else self.candidate.formats.of,
            "memory": int(self.candidate.footprint.total),
            "origin": self.origin,
            "first_rank": self.first_rank,
            "predicted": self.predicted,
            "predicted_rank": self.predicted_rank,
            "measured": self.measured.to_json(),
            "measured_rank": self.measured_rank,
            "kept": self.kept,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Sieved:
    """The outcome of both sieves."""

    result: SearchResult
    """Candidates by measured loss, the least first; `ranking` says so."""

    verdicts: tuple[Verdict, ...]
    """Every candidate that was measured and fits, in the order of measured loss: the first ones are the result's."""

    model: DamageModel | None
    """What ranked, fitted to all measurements; None where so few fit that all were measured."""

    heldout: Heldout | None
    """How well the first fit, of random combinations only, predicts combinations that it did not see."""

    evaluations: int
    """Architectures measured, those for the curves among them."""

    objective: str

    @property
    def rivals(self) -> dict[str, float]:
        """Where formats were searched: the least loss measured of a cut alone, and of formats alone, where they fit."""
        parent = self.result.parent
        found: dict[str, float] = {}
        for verdict in self.verdicts:
            one = verdict.candidate
            if one.formats is not None and not one.formats.quantised:
                found.setdefault(CUT_ALONE, verdict.measured.loss)
            if one.formats is not None and (one.sizes, one.kept) == (parent.sizes, parent.kept):
                found.setdefault(FORMATS_ALONE, verdict.measured.loss)
        return found

    def near_ties(self, within: float = 1.1, most: int = 4) -> tuple[Candidate, ...]:
        """At most `most` of the candidates that lost at most `within` times what the best did: those that only a short
        distillation can tell apart."""
        least = self.verdicts[0].measured.loss
        near = [verdict.candidate for verdict in self.verdicts if verdict.measured.loss <= within * max(least, 0.0)]
        return tuple(near[:most]) or (self.verdicts[0].candidate,)

    def to_json(self) -> dict[str, Any]:
        """For the report: the model, its error, and every verdict."""
        return {
            "objective": self.objective,
            "evaluations": self.evaluations,
            "damage_model": None if self.model is None else self.model.to_json(),
            "heldout_rank_correlation": None if self.heldout is None else self.heldout.rank_correlation,
            "heldout_relative_error": None if self.heldout is None else self.heldout.relative_error,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            **({"rivals": self.rivals} if self.rivals else {}),
        }


def reason_of(place: int, loss: float, least: float, top: int, count: int) -> str:
    """Why a candidate was kept or dropped."""
    if place == 0:
        return f"chosen: the least loss of the {count} that were measured"
    times = f"{loss / least:.3g} times the least loss" if least > 0 else f"{loss - least:.3g} above the least loss"
    return f"kept: {times}" if place < top else f"dropped: {times}"
