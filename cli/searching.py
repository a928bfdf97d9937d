"""The options by which candidates are measured before one is chosen."""

from typing import Final

import typer

from cli.option_groups import Option
from cli.options import option, tokens_option

SEARCHING: Final[dict[str, Option]] = {
    "stages": Option(
        typer.Option(
            "--stages", help="Cut layers and widths together, or layers first and widths by scores of what is left."
        )
    ),
    "objective": Option(
        typer.Option(
            "--objective",
            help="What candidates are measured by: kl (to the parent), perplexity, or task:NAME of lm-eval.",
            metavar="kl|perplexity|task:NAME",
        )
    ),
    "evaluate": Option(
        typer.Option(
            "--evaluate",
            min=0,
            help="Candidates of the damage model to cut and measure; 0 ranks by importance scores alone.",
        )
    ),
    "combinations": Option(
        typer.Option("--combinations", min=4, help="Random architectures to fit the damage model to.")
    ),
    "trial_text": Option(
        option(
            "--judge",
            "Text to measure candidates on; unless given, calibration sequences that no score ever sees.",
            "FILE",
        )
    ),
    "trial_samples": Option(
        typer.Option("--judge-samples", min=1, help="Sequences to measure candidates on, at most.")
    ),
    "finalists": Option(
        typer.Option(
            "--finalists",
            min=0,
            help="Near-ties among the measured to distil for a short while before one is chosen; 0 or 1 for none.",
        )
    ),
    "finalist_tokens": Option(
        tokens_option(
            "--finalist-tokens",
            "Tokens to distil each finalist on; a tenth of --tokens unless given.",
            show_default=False,
        )
    ),
}
"""Field of pipeline.searching.Searching -> how it is typed."""
