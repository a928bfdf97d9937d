"""Importance estimators: the statistics each one sums over activations, and the channel scores computed from them.

The command line takes its choices and their help from ESTIMATORS, so that torch and numpy are imported where they are
used.

Shape letters: B sequences, T tokens, C channels, R tokens routed to E experts of F channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from importance.score.totals import sums_by, wide
from minitron.errors import MinitronError
from minitron.model.axes import AXES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from importance.score.totals import Array, Routing, Totals


@dataclass(frozen=True)
class Statistic:
    """A number a channel that is added up over batches, in its two forms."""

    batch: Callable[[Tensor], Tensor]
    """Activations [B, T, C] -> [C], or [1] where all channels have the same."""

    routed: Callable[[Tensor, Routing], Tensor]
    """Activations [R, F] -> [E, F] or [E, 1]: every expert's own tokens."""


@dataclass(frozen=True)
class Evidence:
    """The evidence from which an estimator scores the channels of one place."""

    shape: tuple[int, ...]
    """(C,), or (E, F) for the channels of routed experts; that of the scores."""

    sums: Mapping[str, Array]
    """The estimator's statistics by name, summed over all batches: the shape above, or its last size 1.  Where it reads
    weights, "weights" is the L2 norm of those by which each channel is read."""

    random: np.random.Generator
    """Where an estimator takes its dice from."""


@dataclass(frozen=True)
class Estimator:
    """A way to score channels.  A score is an amplitude: over a head's channels the squares of scores are summed."""

    statistics: Mapping[str, Statistic]
    """By name, what it wants to know of the activations."""

    finish: Callable[[Evidence], Array]
    """The scores of the channels of one place."""

    summary: str
    """What a channel counts by, in one phrase."""

    source: str
    """The paper and the equation, or what it is there for."""

    reads_weights: bool = False
    """Whether it asks for the norms of the weights."""

    surgeon: bool = False
    """Whether scores by second moments (importance.score.surgeon) take the place of these wherever there are any."""

    weighs_outputs: bool = False
    """Whether those weigh errors in the outputs of a linear by what they do to the loss (importance.score.fisher)."""

    gradients: bool = False
    """Whether its statistics are of activations times the gradient of the loss, observed in the backward pass."""

    def __post_init__(self) -> None:
        if not (self.summary and self.source):
            raise ValueError("an estimator needs a summary and a source")

    @property
    def hidden(self) -> Estimator:
        """The estimator for hidden channels: `activation` if this one needs weights, because many linears read each."""
        return ACTIVATION if self.reads_weights else self

    def of(self, axis: str) -> Estimator:
        """The estimator for an axis: itself (see ByAxis)."""
        return self

    def see(self, totals: Totals, place: Hashable, whole: Tensor, shaped: Callable[[Tensor], Tensor]) -> None:
        """Add activations to `totals`: `whole` is what passes in the model, `shaped` makes [B, T, C] of it."""

        def add(seen: Tensor) -> None:
            for name, statistic in self.statistics.items():
                totals.add((place, name), statistic.batch(shaped(seen)))

        self._now_or_backward(whole, add)

    def see_routed(self, totals: Totals, place: Hashable, activations: Tensor, routing: Routing) -> None:
        """Add [R, F] activations of a place inside routed experts to `totals`."""

        def add(seen: Tensor) -> None:
            for name, statistic in self.statistics.items():
                totals.add((place, name), statistic.routed(seen, routing))

        self._now_or_backward(activations, add)

    def _now_or_backward(self, activations: Tensor, add: Callable[[Tensor], None]) -> None:
        """`add` the activations, or, when gradients come, their product with these."""
        if not self.gradients:
            add(activations)
        elif activations.requires_grad:
            held = activations.detach()

            def hook(gradient: Tensor) -> None:
                add(held * gradient)

            activations.register_hook(hook)  # type: ignore[no-untyped-call]

    def see_weights(self, totals: Totals, place: Hashable, weight: Tensor, dims: tuple[int, ...]) -> None:
        """Note the L2 norm along `dims` of the weights that read the channels of a place, if it matters."""
        if self.reads_weights:
            import torch

            totals.note((place, "weights"), lambda: torch.linalg.vector_norm(weight, dim=dims, dtype=wide(weight)))

    def scores(self, totals: Totals, place: Hashable, shape: tuple[int, ...], random: np.random.Generator) -> Array:
        """What follows from all that was seen of a place."""
        names = [*self.statistics, *(["weights"] if self.reads_weights else [])]
        return self.finish(Evidence(shape, {name: totals[place, name] for name in names}, random))


@dataclass(frozen=True)
class ByAxis:
    """An estimator for each axis."""

    default: Estimator

    others: Mapping[str, Estimator]
    """Axis -> the estimator used for it instead."""

    @property
    def gradients(self) -> bool:
        """Whether some axis needs a backward pass."""
        return any(estimator.gradients for estimator in (self.default, *self.others.values()))

    def of(self, axis: str) -> Estimator:
        """The estimator for an axis."""
        return self.others.get(axis, self.default)


def mean_absolute_squares(activations: Tensor) -> Tensor:
    """[B, T, C] -> [C]: sum over sequences of (mean over the sequence of |a|)^2.

    The square root of its sum over all batches is A(c), Minitron's importance (Muralidharan et al. 2024, arXiv
    2407.14679, section 2.2: mean over the sequence, L2 over the batch, the best of nine aggregations)."""
    means = activations.abs().sum(1, dtype=wide(activations)) / activations.shape[1]
    return means.double().square().sum(0)


def routed_mean_absolute_squares(activations: Tensor, routing: Routing) -> Tensor:
    """[R, F] -> [E, F]: sum over sequences of the squared mean of |a| over those tokens that an expert got of it.

    A sequence of which it got no token adds nothing."""
    segments = routing.experts * routing.sequences
    segment = routing.expert * routing.sequences + routing.sequence
    counts = segment.bincount(minlength=segments)
    sums = sums_by(segment, activations.abs().to(wide(activations)), segments)
    means = sums / counts.clamp_min(1)[:, None]
    return means.double().square().view(routing.experts, routing.sequences, -1).sum(1)


def summed_squares(products: Tensor) -> Tensor:
    """[B, T, C] -> [C]: sum over sequences of (sum over the sequence)^2."""
    return products.sum(1, dtype=wide(products)).double().square().sum(0)


def routed_summed_squares(products: Tensor, routing: Routing) -> Tensor:
    """[R, F] -> [E, F]: the same over those tokens of a sequence that an expert got."""
    segment = routing.expert * routing.sequences + routing.sequence
    sums = sums_by(segment, products.to(wide(products)), routing.experts * routing.sequences)
    return sums.double().square().view(routing.experts, routing.sequences, -1).sum(1)


def count_tokens(activations: Tensor) -> Tensor:
    """[B, T, C] -> [1]: how many tokens there are."""
    import torch

    return activations.new_full((1,), activations.shape[:-1].numel(), dtype=torch.float64)


def sum_tokens(activations: Tensor) -> Tensor:
    """[B, T, C] -> [C]: the sum over all tokens."""
    import torch

    return activations.sum((0, 1), dtype=torch.float64)


SUMMED: Final = Statistic(summed_squares, routed_summed_squares)
MEAN_ABSOLUTE: Final = Statistic(mean_absolute_squares, routed_mean_absolute_squares)

# In float64: a variance is the small difference of two large sums.
TOKENS: Final = Statistic(
    count_tokens,
    lambda activations, routing: routing.expert.bincount(minlength=routing.experts)[:, None],
)
SUM: Final = Statistic(
    sum_tokens,
    lambda activations, routing: sums_by(routing.expert, activations.double(), routing.experts),
)
SQUARES: Final = Statistic(
    lambda activations: activations.double().square().sum((0, 1)),
    lambda activations, routing: sums_by(routing.expert, activations.double().square(), routing.experts),
)


def activation(evidence: Evidence) -> Array:
    """A(c), see `mean_absolute_squares`."""
    import numpy as np

    scores: Array = np.sqrt(evidence.sums["mean_absolute"])
    return scores


def contribution(evidence: Evidence) -> Array:
    """A(c) * ||W_c||_2: how much of the output comes by way of the channel."""
    return activation(evidence) * evidence.sums["weights"]


def fluctuation(evidence: Evidence) -> Array:
    """sqrt(||W_c||_2^2 * Var(a_c)), the variance over all tokens: what is lost when the channel is held at its mean.

    FLAP's metric (An et al. 2023, arXiv 2312.11983) is the square of it, which ranks channels alike and adds up over a
    head; an expert without tokens counts as zero."""
    import numpy as np

    tokens = np.maximum(evidence.sums["tokens"], 1)
    mean = evidence.sums["sum"] / tokens
    # Rounding can leave the variance of a constant a hair below zero.
    variance = np.maximum(evidence.sums["squares"] / tokens - mean**2, 0)
    scores: Array = evidence.sums["weights"] * np.sqrt(variance)
    return scores


def magnitude(evidence: Evidence) -> Array:
    """||W_c||_2: nothing but the weights."""
    return evidence.sums["weights"]


def taylor(evidence: Evidence) -> Array:
    """sqrt(sum over sequences of (sum over tokens of a_c dL/da_c)^2), L the sequence's cross entropy in nats.

    To first order the loss changes by the inner sum when the channel is set to zero (Molchanov et al. 2019, Importance
    Estimation for Neural Network Pruning, arXiv 1906.10771, equation 8, on activations)."""
    import numpy as np

    scores: Array = np.sqrt(evidence.sums["summed"])
    return scores


def chance(evidence: Evidence) -> Array:
    """Uniform in [0, 1): the control that every other estimator has to beat."""
    return evidence.random.random(evidence.shape)


ACTIVATION: Final = Estimator(
    {"mean_absolute": MEAN_ABSOLUTE},
    activation,
    summary="mean absolute activation over a sequence, L2 norm over sequences",
    source="Minitron, arXiv 2407.14679, section 2.2",
)

ESTIMATORS: Final[dict[str, Estimator]] = {
    "activation": ACTIVATION,
    "contribution": Estimator(
        {"mean_absolute": MEAN_ABSOLUTE},
        contribution,
        summary="`activation` times the norm of the weights that read the channel",
        source="Minitron's A(c) times ‖W_c‖₂; no paper noted",
        reads_weights=True,
    ),
    "surgeon": Estimator(
        {"mean_absolute": MEAN_ABSOLUTE},
        activation,
        summary="error that remains after the remaining weights are refitted (Optimal Brain Surgeon)",
        source="Optimal Brain Surgeon; ZipLM, arXiv 2302.04089",
        surgeon=True,
    ),
    "fisher": Estimator(
        {"mean_absolute": MEAN_ABSOLUTE},
        activation,
        summary="`surgeon`, errors of a linear's outputs weighted by their Fisher matrix, and directions of the stream "
        "by theirs (needs a backward pass)",
        source="K-FAC, arXiv 1503.05671; Optimal Brain Surgeon",
        surgeon=True,
        weighs_outputs=True,
    ),
    "flap": Estimator(
        {"tokens": TOKENS, "sum": SUM, "squares": SQUARES},
        fluctuation,
        summary="variance of the activation times the squared norm of the weights that read it",
        source="FLAP, arXiv 2312.11983",
        reads_weights=True,
    ),
    "magnitude": Estimator(
        {},
        magnitude,
        summary="norm of the weights, without activations",
        source="the baseline ‖W_c‖₂; no paper noted",
        reads_weights=True,
    ),
    "taylor": Estimator(
        {"summed": SUMMED},
        taylor,
        summary="activation times the gradient of the loss, summed over a sequence, L2 norm over sequences "
        "(needs a backward pass)",
        source="Molchanov et al. 2019, arXiv 1906.10771, equation 8",
        gradients=True,
    ),
    "random": Estimator(
        {},
        chance,
        summary="random numbers",
        source="control for the other estimators",
    ),
}
"""W_c are the weights of the linear that reads channel c: its column, over all experts for what they all read.  No
linear reads the x of a Mamba mixer before it is convolved and scanned: there W_c is the row of in_proj making it."""


BEST: Final = "best"
FALLBACK: Final = "activation"
"""What `best` takes for all axes but those in DEFAULTS, and for these where no second moments are taken."""

DEFAULTS: Final = {name: ESTIMATORS[row.estimator] for name, row in AXES.items() if row.estimator != FALLBACK}
"""Axis -> the estimator that `best` uses for it, from the axis's row."""


def find_estimator(name: str) -> Estimator | ByAxis:
    """The entry of ESTIMATORS, or for BEST that of each axis in DEFAULTS; raises MinitronError for any other name."""
    if name == BEST:
        return ByAxis(ESTIMATORS[FALLBACK], DEFAULTS)
    if name not in ESTIMATORS:
        raise MinitronError(f"there is no estimator {name!r}; use one of {', '.join([BEST, *ESTIMATORS])}.")
    return ESTIMATORS[name]
