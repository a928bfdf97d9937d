"""The options by which an architecture, once chosen, is cut out of the weights."""

from typing import Final

import typer

from cli.option_groups import Option

CUTTING: Final[dict[str, Option]] = {
    "rotate": Option(
        typer.Option(
            "--rotate/--select",
            help="Cut the residual stream to its strongest directions or to its best channels; unless given, "
            "directions wherever the output layer is not tied to the embedding, which they would part.",
            show_default=False,
        )
    ),
    "project": Option(
        typer.Option(
            "--project/--no-project", help="Cut heads and latent spaces to their strongest directions where they are."
        )
    ),
    "fit": Option(
        typer.Option(
            "--fit/--no-fit", help="Fit linears that lose inputs to those that stay, where scores have their moments."
        )
    ),
}
"""Field of pipeline.cutting.Cutting -> how it is typed."""
