"""How an architecture, once chosen, is cut out of the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Cutting:
    """How what is chosen is cut."""

    rotate: bool | None = None
    """Whether the residual stream is cut to its strongest directions or to its best channels; None is directions
    wherever the output layer is not tied to the embedding, which they would part."""

    project: bool = True
    """Whether heads and latent spaces are cut to their strongest directions, where they are."""

    fit: bool = True
    """Whether linears that lose inputs are fitted to those that stay, where scores have their moments."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as JSON."""
        return dataclasses.asdict(self)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of minitron.cut.plan.make_plan."""
        return {"rotate": self.rotate, "project": self.project, "refit": self.fit}

    def counted(self, spec: ModelSpec, scores: Scores) -> tuple[ModelSpec, Scores]:
        """The spec by which memory is counted, and the scores as those of it: a rotation parts tied outputs."""
        if not self.rotate:
            return spec, scores
        untied = spec.untied()
        return untied, dataclasses.replace(scores, model=untied.fingerprint)
