"""What each part of a chosen candidate costs, by the prior: the format of each component, and the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from minitron.model.spec import ModelSpec
from minitron.search.format_choices import EXPONENT, SENSITIVITY, errors_of
from minitron.search.offered_formats import form_of
from minitron.search.search import SearchResult
from minitron.units import format_parameters

CUT: Final = "the cut"
"""Stands for all sizes and layers that are cut, beside the components and keys and values."""


COST_COLUMNS: Final = ("", "format", "bits", "numbers", "a token uses", "of the loss, by the prior")


@dataclass(frozen=True)
class PartCost:
    """One part."""

    part: str
    """A component, `kv`, or CUT."""

    form: str
    """Its format; empty for CUT."""

    number_bits: float
    """Of a number, with its part of what a group shares; 0 for CUT."""

    parameters: int
    """What is left of its numbers; 0 for `kv` and CUT."""

    active_parameters: int
    """Those of them that a token uses."""

    loss_share: float
    """Its share of the loss that the prior (minitron.search.format_choices) expects of all parts together."""

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return vars(self)

    @property
    def cells(self) -> list[str]:
        """Its row in a table with the columns COST_COLUMNS."""
        numbers = (format_parameters(count) if count else "" for count in (self.parameters, self.active_parameters))
        bits = f"{self.number_bits:.4g}" if self.form else ""
        return [self.part, self.form, bits, *numbers, f"{self.loss_share:.1%}"]


def part_costs(spec: ModelSpec, result: SearchResult) -> tuple[PartCost, ...]:
    """Of the best candidate of a search over formats, the cut first and then the dearest parts; none where formats were
    not searched."""
    best = result.best
    if best.formats is None:
        return ()
    counts = best.left(spec).parameters()
    losses = {part: SENSITIVITY**EXPONENT * error for part, error in errors_of(counts, best.formats.of).items()}
    # What candidates are ranked by is where a cut alone would lose as much.
    whole = max(1.0 - best.score / int(spec.parameters().total), 0.0) ** EXPONENT
    cut = max(whole - sum(losses.values()), 0.0)
    total = cut + sum(losses.values()) or 1.0
    found = [
        PartCost(
            part,
            form,
            float(form_of(form).bits_with_scales),
            int(counts.by_component.get(part, 0)),
            int(counts.active_by_component.get(part, 0)),
            losses[part] / total,
        )
        for part, form in best.formats.of.items()
    ]
    return (PartCost(CUT, "", 0.0, 0, 0, cut / total), *sorted(found, key=lambda one: -one.loss_share))
