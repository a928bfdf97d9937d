"""Why a choice of bits and sizes together was made: what a cut alone, or formats alone, would have kept or lost; and
what to know of its formats."""

from __future__ import annotations

from collections.abc import Mapping

from minitron.memory.questions import cautions
from minitron.model.spec import ModelSpec
from minitron.search.search import SearchResult
from minitron.search.sweep import RIVALS
from minitron.units import format_parameters


def by_score(result: SearchResult) -> str:
    """One sentence on what the chosen candidate keeps beside its rivals, by what candidates are ranked by; empty where
    formats were not searched."""
    if result.best.formats is None:
        return ""
    score = result.best.score
    others = {name: one.score for name, one in result.rivals.items()}
    told = [f"{name} {format_parameters(int(other))} ({other / score:.0%})" for name, other in others.items()]
    return (
        f"Worth, by the prior, as much as a cut alone to: {format_parameters(int(score))} by bits and sizes together, "
        f"{_listed(told, others)}."
    )


def by_loss(loss: float, rivals: Mapping[str, float]) -> str:
    """One sentence on what the chosen candidate loses beside its rivals, as measured."""
    told = [
        f"{name} {lost:.4g}" + (f" ({lost / loss:.3g} times as much)" if 0 < loss < lost else "")
        for name, lost in rivals.items()
    ]
    return f"Lost, as measured: {loss:.4g} by bits and sizes together, {_listed(told, rivals)}."


def formats_cautions(spec: ModelSpec, result: SearchResult) -> tuple[str, ...]:
    """What is to be known of the formats of the chosen candidate, beside what is of those of the workload."""
    if not result.candidates or result.best.formats is None:
        return ()
    gpu, left = result.budget.gpu, result.best.left(spec)
    known = cautions(spec, result.workload, gpu)
    return tuple(text for text in cautions(left, result.served(left), gpu) if text not in known)


def _listed(told: list[str], known: Mapping[str, float]) -> str:
    return ", ".join(told + [f"{name} does not fit" for name in RIVALS if name not in known])
