"""The options by which an architecture, once chosen, is cut out of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import spread_options

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Cutting:
    """What was typed."""

    rotate: Annotated[
        bool | None,
        typer.Option(
            "--rotate/--select",
            help="Cut the residual stream to its strongest directions or to its best channels; unless given, "
            "directions wherever the output layer is not tied to the embedding, which they would part.",
            show_default=False,
        ),
    ] = None
    project: Annotated[
        bool,
        typer.Option(
            "--project/--no-project", help="Cut heads and latent spaces to their strongest directions where they are."
        ),
    ] = True
    fit: Annotated[
        bool,
        typer.Option(
            "--fit/--no-fit", help="Fit linears that lose inputs to those that stay, where scores have their moments."
        ),
    ] = True

    @property
    def settings(self) -> dict[str, Any]:
        """What was typed, as JSON."""
        return dict(vars(self))

    def counted(self, spec: ModelSpec, scores: Scores) -> tuple[ModelSpec, Scores]:
        """The spec by which memory is counted, and the scores as those of it: a rotation parts tied outputs."""
        if not self.rotate:
            return spec, scores
        untied = spec.untied()
        return untied, dataclasses.replace(scores, model=untied.fingerprint)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of minitron.cut.plan.make_plan."""
        return {"rotate": self.rotate, "project": self.project, "refit": self.fit}


def takes_cutting(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `cutting` spread out into the options of Cutting, as typer reads them."""
    return spread_options(function, "cutting", Cutting)
