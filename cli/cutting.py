"""Options of `prune` and `compress`: how the chosen architecture is cut out of the weights."""

from typing import Final

import typer

from cli.option_groups import Option

CUTTING: Final[dict[str, Option]] = {
    "rotate": Option(
        typer.Option(
            "--rotate/--select",
            help="How to cut the residual stream: rotate it and keep its strongest directions, or select "
            "its best channels; default: rotate unless embeddings are tied.",
            show_default=False,
        )
    ),
    "project": Option(
        typer.Option(
            "--project/--no-project",
            help="Project attention heads and latent channels onto their strongest directions, where the "
            "architecture allows it.",
        )
    ),
    "fit": Option(
        typer.Option(
            "--fit/--no-fit",
            help="Refit, by least squares, linear layers that lose inputs; needs scores with second moments.",
        )
    ),
}
"""Field of pipeline.cutting.Cutting -> how it is typed."""
