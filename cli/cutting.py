"""Options of `prune` and `compress`: how the chosen architecture is cut out of the weights."""

from typing import Final

import typer

from cli.option_groups import Option

CUTTING: Final[dict[str, Option]] = {
    "rotate": Option(
        typer.Option(
            "--rotate/--no-rotate",
            help="Rotate the residual stream and keep its strongest directions, or else select its best channels; "
            "default: rotate unless embeddings are tied.",
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
            help="Refit linear layers that lose inputs, by least squares; needs scores with second moments.",
        )
    ),
}
"""Field of pipeline.cutting.Cutting -> how it is typed."""
