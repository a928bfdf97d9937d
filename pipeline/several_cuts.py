"""Several cuts instead of one: each takes at most a share of the parameters, and distillation comes between.

Where half of a model goes, two cuts end nearer the model than one, for as many tokens in all (benchmarks/RESULTS.md,
"Ways to train on a GPU").  Every cut but the last has a run folder of its own in the run folder, FOLDER and its number;
the last is made in the run folder itself.  The teacher of all is the whole model.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from pipeline.compression import DISTILLED, Compression

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from minitron.model.spec import ModelSpec
    from pipeline.planning import Planning

FOLDER: Final = "cut-"

LARGE: Final = 0.4
"""The share of the parameters from which on a single cut is told of: at 0.35 one cut is better, at 0.5 two are."""

_SLACK: Final = 1e-9
"""A whole number of cuts stays one, however its logarithms are rounded."""


def parameters_after(share: float, whole: int, last: int) -> list[int]:
    """The parameters that are left after each cut of one factor, of which none takes more than `share`: from `whole`,
    which is not among them, to `last`, which is."""
    if last >= whole:
        return [last]
    count = max(1, ceil(log(last / whole) / log(1 - share) - _SLACK))
    return [*(round(whole * (last / whole) ** (number / count)) for number in range(1, count)), last]


def cuts_of(request: Compression, spec: ModelSpec, last: int) -> list[int]:
    """The parameters that are left after each cut of the request's model, `last` in the end: of those before it the
    most that may be.  Without --steps-of it is one.

    Raises MinitronError where there are not enough steps of training for so many cuts."""
    if request.steps_of is None:
        return [last]
    left = parameters_after(request.steps_of, spec.parameters().total, last)
    if len(left) > 1 and request.recipe.total_steps <= len(left):
        raise MinitronError(
            f"--steps-of {request.steps_of:g} makes {len(left)} cuts, and there are {request.recipe.total_steps} steps "
            "of training for all of them; give a larger share, or more --tokens."
        )
    return left


def left_by_search(request: Compression, spec: ModelSpec) -> int:
    """The parameters of what a search without scores finds, which is about as large as what scores choose.

    Raises NothingFits where nothing fits."""
    return int(request.planning.search(spec).best.left(spec).parameters().total)


def earlier_cut(request: Compression, number: int, left: list[int]) -> Compression:
    """The request of cut `number` (from 1) of those after which `left` is left: not of the last."""
    before = _before(request, number)
    # What is trained on is no answer yet that a judge could rule on.
    judged: dict[str, Any] = {} if request.searching.judge is None else {"objective": "kl", "prompts": None}
    return replace(
        before,
        output=request.output / f"{FOLDER}{number}",
        planning=_limited(before.planning, left[number - 1]),
        # One size for all layers of a kind, which the next cut can start from.
        searching=replace(request.searching, sizes="uniform", **judged),
        # Another order of the text than that of the last cut: it is not to read the same part of it again.
        recipe=replace(_share(request.recipe, len(left)), seed=request.recipe.seed + len(left) - number),
        form=None,
        config="",
    )


def last_cut(request: Compression, left: list[int]) -> Compression:
    """The request of the last cut."""
    recipe, count = request.recipe, len(left)
    rest = recipe.total_tokens - (count - 1) * _share(recipe, count).total_tokens
    return replace(_before(request, count), recipe=_of_tokens(recipe, rest))


def _before(request: Compression, number: int) -> Compression:
    """The request on what the cut before `number` left: scored anew, with limits that are still those of the model."""
    if number == 1:
        return replace(request, teacher=request.model, steps_of=None, dequantise=False)
    from minitron.model.spec import read_spec

    model = request.output / f"{FOLDER}{number - 1}" / DISTILLED
    planning = _as_of_the_whole(request.planning, read_spec(request.model), read_spec(model))
    return replace(
        request,
        model=model,
        teacher=request.model,
        planning=planning,
        scores=None,
        steps_of=None,
        dequantise=False,
    )


def _limited(planning: Planning, parameters: int) -> Planning:
    """A plan for a model that is trained and cut again, and never served: so many parameters at most, in 16 bits."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("gpu", "gpu_memory", "budget", "active_params", "max_latency", "min_throughput", "reserve", "utilization")
    )
    formats: dict[str, Any] = {"formats": (), "search_kv": False, "weights": None, "keep": {}}
    return replace(planning, **nothing, **formats, params=parameters)


def _as_of_the_whole(planning: Planning, whole: ModelSpec, now: ModelSpec) -> Planning:
    """Shares of sizes are those of the whole model's, not of what is left now; sizes that are gone are not tried."""
    from minitron.model.spec import DEPTH
    from minitron.search.search_steps import config_key, share_left

    most = {name: share_left(name, most, whole, now) for name, most in planning.most.items()}
    largest = {**now.named_sizes, DEPTH: len(now.layers)}
    lattice = {
        key: [size for size in sizes if isinstance(size, str) or size <= largest[config_key(now, key)]]
        for key, sizes in planning.lattice.items()
    }
    return replace(planning, most=most, lattice=lattice)


def _share(recipe: Recipe, cuts: int) -> Recipe:
    """What is trained after a cut that is not the last: which gets twice as many tokens as each of the others."""
    return _of_tokens(recipe, recipe.total_tokens // (cuts + 1))


def _of_tokens(recipe: Recipe, tokens: int) -> Recipe:
    return replace(recipe, tokens=tokens // recipe.batch_tokens * recipe.batch_tokens, steps=None)
