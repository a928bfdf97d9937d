"""Options of the search by measurement: candidates are cut, measured, and one is chosen."""

from typing import Final

import typer

from cli.option_groups import Option
from cli.options import option, tokens_option

SEARCHING: Final[dict[str, Option]] = {
    "sizes": Option(
        typer.Option(
            "--sizes",
            help="One size for all layers of a kind, or each layer its own, chosen by measured damage a byte: "
            "nemotron_h models alone, which become nemotron_h_puzzle.",
        )
    ),
    "stages": Option(
        typer.Option(
            "--stages",
            help="Cut layers and widths together, or layers first and then widths by new scores of the "
            "shortened model.",
        )
    ),
    "objective": Option(
        typer.Option(
            "--objective",
            help="Objective to measure candidates by: kl (divergence from the parent), perplexity, or "
            "task:NAME of lm-eval. judge:JUDGE measures them by kl, and chooses among the finalists by what they "
            "answer to --prompts: a folder, or URL#MODEL.",
            metavar="kl|perplexity|task:NAME|judge:JUDGE",
        )
    ),
    "evaluate": Option(
        typer.Option(
            "--evaluate",
            min=0,
            help="Number of the damage model's best candidates to cut and measure; 0: rank by importance scores only.",
        )
    ),
    "combinations": Option(
        typer.Option(
            "--combinations", min=4, help="Number of random architectures to measure, to fit the damage model."
        )
    ),
    "trial_text": Option(
        option(
            "--trial-text",
            "Text to measure candidates on; default: calibration sequences held out from scoring.",
            "FILE",
        )
    ),
    "trial_samples": Option(
        typer.Option("--trial-samples", min=1, help="Samples of it to read, at most, to measure candidates on.")
    ),
    "prompts": Option(option("--prompts", "Prompts, for --objective judge:JUDGE: a file or a folder.", "FILE")),
    "answer_tokens": Option(typer.Option("--answer-tokens", min=1, help="Tokens of an answer at most, to --prompts.")),
    "finalists": Option(
        typer.Option(
            "--finalists",
            min=0,
            help="Number of candidates with nearly equal loss to distil briefly before one is chosen; 0 or 1: none.",
        )
    ),
    "finalist_tokens": Option(
        tokens_option(
            "--finalist-tokens",
            "Tokens to distil each finalist on; default: a tenth of --tokens.",
            show_default=False,
        )
    ),
}
"""Field of pipeline.searching.Searching -> how it is typed."""
