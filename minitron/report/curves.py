"""The curves of a report: memory against context and batch, of the model and of the best candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from minitron.memory.curves import Curves, batch_curves, context_curves
from minitron.model.spec import ModelSpec
from minitron.search.search import SearchResult

_CURVES: Final = 4
"""Candidates whose curves are drawn: more lines than that cannot be told apart."""

PARENT: Final = "model"
"""The label of the model as it is; candidates are #1, #2, ..."""


def curves_document(spec: ModelSpec, result: SearchResult, labels: Sequence[str]) -> dict[str, Any]:
    """The model's and the first few candidates' curves, the chosen one's among them."""
    places = list(range(len(result.candidates)))
    drawn = sorted(sorted(places, key=lambda place: (place != result.chosen, place))[:_CURVES])
    same = (dict(result.parent.sizes), result.parent.kept, result.workload)
    models, own = {PARENT: spec}, {}
    for place in drawn:
        candidate, label = result.candidates[place], labels[1 + place]
        left = candidate.left(spec)
        if (dict(candidate.sizes), candidate.kept, served := result.served(left, candidate)) != same:
            models[label], own[label] = left, served
    longest = spec.value("max_position_embeddings")
    longest = longest if isinstance(longest, int) else None
    context = context_curves(models, result.workload, result.budget, longest, own)
    return {
        "context": _curves(context, "tokens", "context_tokens"),
        "batch": _curves(batch_curves(models, result.workload, result.budget, own), "sequences", "batch_sequences"),
    }


def _curves(curves: Curves, unit: str, quantity: str) -> dict[str, Any]:
    return {
        quantity: list(curves.points),
        "series": [
            {
                "label": label,
                "total_bytes": list(curve.totals),
                f"largest_{unit}": curve.largest,
                "at_largest_bytes": curve.at_largest,
            }
            for label, curve in curves.series.items()
        ],
    }
