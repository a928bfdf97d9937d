"""The unpruned model against the budget: its memory, whether it fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.planning import Planning

if TYPE_CHECKING:
    from minitron.engines.table import Fact
    from minitron.memory.budget import Budget
    from minitron.memory.footprint_lines import FootprintLine
    from minitron.memory.questions import Remedy
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Standing:
    """The unpruned model, with budget and workload."""

    planning: Planning
    spec: ModelSpec
    budget: Budget
    workload: Workload

    @property
    def terms(self) -> tuple[FootprintLine, ...]:
        """The model's memory, term by term."""
        from minitron.memory.footprint_lines import footprint_lines

        return tuple(footprint_lines(self.spec, self.workload, self.budget))

    @property
    def engine_log(self) -> tuple[Fact, ...]:
        """What the engine's log should say of the model; empty for no engine."""
        from minitron.memory.footprint import engine_facts

        return engine_facts(self.spec, self.workload, self.budget)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Cautions about the GPU and the workload."""
        from minitron.memory.questions import cautions

        return cautions(self.spec, self.workload, self.budget.gpu)

    @property
    def fits(self) -> bool:
        """Whether the model fits as it is."""
        from minitron.memory.questions import fits

        return fits(self.spec, self.workload, self.budget)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What would make a model fit that does not, beside pruning."""
        from minitron.memory.questions import remedies

        if self.fits:
            return ()
        limit = self.planning.budget_of if self.budget.gpu is not None else None
        return remedies(self.spec, self.workload, self.budget, limit)


def stand(model: Path, planning: Planning) -> Standing:
    """The unpruned model against the budget, which is defined even if no smaller model fits; reads no weights.

    Raises MinitronError where there is neither a GPU nor a budget of bytes."""
    from minitron.model.stored import read_stored_spec

    planning.require_limits()
    spec = read_stored_spec(model)
    return Standing(planning, spec, planning.budget_for(spec), planning.workload(spec))
