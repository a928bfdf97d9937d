"""Options of scoring, for `score` itself and for `prune` and `compress`, which score as a first step."""

from pathlib import Path
from typing import Annotated, Final

import typer

from cli.option_groups import Option
from cli.options import (
    BatchSizeOption,
    DtypeOption,
    SamplesOption,
    SeedOption,
    SequenceLengthOption,
    option,
)
from importance.score.estimators import BEST, ESTIMATORS, find_estimator


def _estimator(name: str) -> str:
    """`name`, if there is such an estimator; raises MinitronError for any other."""
    find_estimator(name)
    return name


EstimatorOption = Annotated[
    str,
    typer.Option(
        "--estimator",
        parser=_estimator,
        help=f"How a channel is scored. {BEST}: the estimator that measured best for each axis; "
        f"{'; '.join(f'{name}: {estimator.summary}' for name, estimator in ESTIMATORS.items())}.",
        metavar="NAME",
    ),
]


RefitOption = Annotated[
    bool,
    typer.Option(
        "--refit/--no-refit",
        help="Collect second moments of the inputs of linear layers, so that a cut can refit their weights.",
    ),
]


OffloadOption = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Score layer by layer, with one layer's weights in memory at a time: for models larger than memory.",
    ),
]
OffloadFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--offload-folder",
        help="Folder on disk for the hidden states of --offload; default: in memory.",
        metavar="FOLDER",
        show_default=False,
    ),
]


SCORING: Final[dict[str, Option]] = {
    "samples": Option.of(SamplesOption),
    "sequence_length": Option.of(SequenceLengthOption),
    "batch_size": Option.of(BatchSizeOption),
    "estimator": Option.of(EstimatorOption),
    "seed": Option.of(SeedOption),
    "layers": Option(
        typer.Option(
            "--layer-scores",
            help="How layers are scored. iterative: remove layers one by one, by KL. fast: block influence. none: do "
            "not score layers.",
        )
    ),
    "layer_samples": Option(
        typer.Option("--layer-samples", min=1, help="Samples for the iterative removal of layers.")
    ),
    "refit": Option.of(RefitOption),
    "dtype": Option.of(DtypeOption),
    "offload": Option.of(OffloadOption),
    "offload_folder": Option.of(OffloadFolderOption),
}
"""Field of importance.score.options.ScoringOptions -> how it is typed where a command scores on the way."""

SCORE: Final[dict[str, Option]] = SCORING | {
    "max_dropped": Option(
        option("--max-dropped", "Number of layers to remove iteratively; default: half of them.", min=1)
    ),
}
"""The same for `minitron score`, which does nothing else."""
