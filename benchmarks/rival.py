"""The baseline of benchmarks/search.py: how the leading tool chooses, as strong as its procedure can be made.

Its scores: mean activations; all experts' tokens pooled for expert channels, so that one order of channels holds for
all experts of a layer; the router's correction bias switched off while scoring; layers judged once, each left out
alone, whatever their kind.  Its search: the ten LARGEST architectures that fit.  Its choice: of these the one of the
least loss on text that nothing was fitted on.  It cuts channels, with nothing rotated and nothing refitted; the norms'
gains are corrected, which the tool itself does not do and which makes the baseline stronger.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from importance.search.trial import Trial, Trials
from minitron.cut.plan import Plan, make_plan
from minitron.cut.scores import Scores
from minitron.memory.budget import Budget
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec
from minitron.search.candidate import Candidate
from minitron.search.depth import Kept
from minitron.search.search import build_lattice, search

CANDIDATES = 10


@contextmanager
def without_correction_bias(model: PreTrainedModel) -> Iterator[None]:
    """The model with routers that choose by their logits alone."""
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    kept = [bias.clone() for bias in biases]
    for bias in biases:
        bias.zero_()
    try:
        yield
    finally:
        for bias, old in zip(biases, kept, strict=True):
            bias.copy_(old)


def rival_scores(model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64], batch_size: int) -> Scores:
    """Its scores on the sequences `blocks` [S, T]; layers on at most 8 of them."""
    with without_correction_bias(model):
        scores = score_model(
            model,
            spec,
            blocks,
            ScoringOptions(batch_size=batch_size, estimator="activation", refit=False, layers="none"),
        )
    # One round of removal: each layer's own divergence, with the bias on, as the model is used.
    depth = score_model(
        model, spec, blocks[:8], ScoringOptions(batch_size=batch_size, refit=False, max_dropped=1, layer_samples=8)
    )
    pooled = dict(scores.importance)
    for key, values in scores.importance.items():
        if key[0] == "expert_ffn":
            pooled[key] = np.broadcast_to(np.sqrt(np.square(values).sum(0)), values.shape).copy()
    layers = {("layer", None): depth.importance["layer", None]}
    return replace(scores, importance={**pooled, **layers}, covariance={})


def rival_plan(spec: ModelSpec, scores: Scores, sizes: Mapping[str, int], kept: Kept) -> Plan:
    """How it cuts an architecture."""
    return make_plan(spec, sizes, kept, scores, rotate=False, refit=False)


def rival_choice(
    trials: Trials, scores: Scores, workload: Workload, budget: Budget, options: Mapping[str, Any]
) -> tuple[Candidate, Plan, list[Trial]]:
    """The chosen architecture, the plan that cuts it, and what was measured of all ten, the largest first.

    `options` are those of minitron.search.search.build_lattice: the lattice that the other side searches too."""
    spec = trials.spec
    lattice = build_lattice(spec, workload, scores=scores, keep_attention=0, **options)
    largest = search(lattice, workload, budget, scores=scores, sort="memory", top=CANDIDATES).candidates
    plans = [rival_plan(spec, scores, candidate.sizes, candidate.kept) for candidate in largest]
    found = [trials.run(plan) for plan in plans]
    best = min(range(len(found)), key=lambda place: found[place].perplexity)
    return largest[best], plans[best], found
