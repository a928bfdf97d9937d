"""The request of a cut: how the chosen architecture is cut out of the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Cutting:
    """How the chosen architecture is cut."""

    rotate: bool | None = None
    """Whether the residual stream is rotated to its strongest directions (True) or its best channels are selected
    (False); None rotates unless embeddings are tied, because a rotation unties them."""

    project: bool = True
    """Whether attention heads and latent channels are projected onto their strongest directions, where possible."""

    fit: bool = True
    """Whether linear layers that lose inputs are refitted by least squares, if the scores hold second moments."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as JSON."""
        return dataclasses.asdict(self)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of minitron.cut.plan.make_plan."""
        return {"rotate": self.rotate, "project": self.project, "refit": self.fit}

    def counted(self, spec: ModelSpec, scores: Scores) -> tuple[ModelSpec, Scores]:
        """The spec whose memory is counted, with its scores: a rotation unties embeddings."""
        if not self.rotate:
            return spec, scores
        untied = spec.untied()
        return untied, dataclasses.replace(scores, model=untied.fingerprint)
