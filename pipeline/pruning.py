"""Prune: score, plan and cut; steps whose result is given are skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from importance.score.options import ScoringOptions
from minitron.errors import MinitronError
from minitron.files import refuse_existing, scratch, sole
from minitron.locks import resolved
from minitron.model.identity import require_weights
from minitron.progress import Note, Progress, no_note, silent
from pipeline.cutting import Cutting
from pipeline.planning import Planning

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.cut.prune import Pruned
    from minitron.cut.scores import Scores
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import ModelSpec

DEPTH: Final = "num_hidden_layers"

_WAYS: Final = "--plan, --set, --layers, --pattern, --gpu, --budget or --params"


@dataclass(frozen=True)
class Pruning:
    """A checkpoint, what says how small it is to be, and what says which parts matter."""

    model: Path
    """The checkpoint to cut."""

    output: Path
    """The folder that is written."""

    planning: Planning = field(default_factory=Planning)
    """A budget to cut to, where neither a plan nor sizes are given."""

    plan: Path | None = None
    """A plan that was written before."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Config key -> size to cut to."""

    scores: Path | None = None
    """Scores that were written before."""

    data: Path | None = None
    """Calibration text, where no scores are given."""

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    """How the model is scored on it."""

    cutting: Cutting = field(default_factory=Cutting)
    """How what is chosen is cut."""

    device: str | None = None
    """Where the model is scored, as torch spells it; None is the first GPU, or else the CPU."""

    dequantise: bool = False
    """Whether the checkpoint is a quantised one, to be turned into bf16; the whole of it where nothing says how small
    the model is to be."""

    overwrite: bool = False
    """Whether an output that exists is replaced."""

    def __post_init__(self) -> None:
        ways = {
            "--plan": self.plan is not None,
            "--set": bool(self.sizes),
            "--gpu": self.planning.device is not None,
            "--budget": self.planning.budget is not None,
        }
        given = [flag for flag, used in ways.items() if used]
        if self._depth and not given and not self.planning.asked:
            given.append(self._depth)
        asked = list(self.planning.asked)
        if asked and not {"--gpu", "--budget"} & set(given):
            given.append(asked[0])
        if not given and not self.dequantise:
            raise MinitronError(f"nothing says how small the model is to be; give one of {_WAYS}.")
        if len(given) > 1:
            raise MinitronError(
                f"{given[0]} and {given[1]} both say how small the model is to be; give one of {_WAYS}."
            )
        self._require_one_depth(given)
        if self.scores is not None and self.data is not None:
            raise MinitronError("--scores and --data are both given, but only one is used; drop one.")

    @property
    def _depth(self) -> str | None:
        """The option that says which layers stay, beside --set; None where there is none."""
        flags = {"--layers": self.planning.layers, "--pattern": self.planning.pattern}
        return next((flag for flag, value in flags.items() if value is not None), None)

    def _require_one_depth(self, given: list[str]) -> None:
        """Raise MinitronError where a depth or a lattice is asked for of what has its sizes already."""
        if self.planning.limited:
            return
        what = given[0] if given else "--dequantise alone"
        if self.planning.lattice:
            raise MinitronError(f"--lattice needs a search, but {what} makes none; drop one.")
        if self._depth and self.plan is not None:
            raise MinitronError(f"--plan says which layers stay, and so does {self._depth}; drop one.")
        if self._depth and DEPTH in self.sizes:
            raise MinitronError(f"--set {DEPTH} and {self._depth} both say which layers stay; drop one.")

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside the inputs, as JSON."""
        return {
            "planning": self.planning.settings,
            "set": dict(self.sizes),
            "scoring": self.scoring.to_json() if self.data else {},
            "cutting": self.cutting.settings,
            **({"dequantise": True} if self.dequantise else {}),
        }

    @property
    def keeps_all(self) -> bool:
        """Whether nothing says how small the model is to be, so that all of it stays."""
        return not self.sizes and self.plan is None and self._depth is None and not self.planning.limited


@dataclass(frozen=True)
class Cut:
    """What was cut."""

    source: ModelSpec
    """The model before."""

    plan: Plan
    """What it was cut by."""

    pruned: Pruned
    """Parameters and bytes, before and after."""

    @property
    def target(self) -> ModelSpec:
        """The model after."""
        return self.plan.target(self.source)

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        from minitron.model.by_layer import write_sizes

        target = self.target
        about = {"sizes": target.named_sizes, "layers": target.letters, "kept_layers": list(self.plan.layers)}
        own = {"by_layer": write_sizes(self.plan.by_layer)} if self.plan.by_layer else {}
        return self.pruned.to_json() | about | own


def prune(request: Pruning, *, progress: Progress = silent, note: Note = no_note) -> Cut:
    """Cut a checkpoint to a memory budget, to a plan, or to given sizes.  `note` is told what of its folder is passed
    over.

    Raises MinitronError, with nothing written, where the checkpoint is not understood whole, nothing fits, the output
    exists, or nothing says which parts matter."""
    from minitron.cut.companions import companions
    from minitron.cut.prune import prune as write
    from minitron.model.dequantised import open_plain
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_plain

    request.planning.require_one_format(
        "prune writes 16 bits", "use `minitron compress`, or `minitron plan -o` and then `minitron prune --plan`"
    )

    inputs = [path for path in (request.model, request.plan, request.scores, request.data) if path]
    with sole(request.output):
        refuse_existing(request.output, overwrite=request.overwrite, inputs=inputs)
        if not request.dequantise:
            require_plain(request.model)
        request = replace(request, model=local_folder(request.model, progress, note))
        companions(request.model)
        if request.dequantise and request.data is not None:
            return _scored_in_bf16(request, progress)
        spec, checkpoint, _ = open_plain(request.model, dequantise=request.dequantise)
        plan = _plan(request, spec, checkpoint, progress)
        written = write(
            request.model,
            plan,
            request.output,
            overwrite=request.overwrite,
            dequantise=request.dequantise,
            progress=progress,
        )
        return Cut(spec, plan, written)


def _scored_in_bf16(request: Pruning, progress: Progress) -> Cut:
    """Cut by scores of a quantised checkpoint, which need it in bf16: a copy of it stands beside the output for the
    while."""
    with scratch(request.output) as between:
        whole = between / resolved(request.model).name
        prune(Pruning(request.model, whole, dequantise=True), progress=progress)
        return prune(replace(request, model=whole, dequantise=False), progress=progress)


def _plan(request: Pruning, spec: ModelSpec, checkpoint: Checkpoint, progress: Progress) -> Plan:
    """The plan with the indices that stay, from what was given."""
    from minitron.cut.magnitude import weight_magnitude
    from minitron.cut.plan import load_plan, make_plan

    # Before minutes of scoring, not after: a checkpoint that is not understood whole is refused.
    checkpoint.check(spec)
    whole = tuple(range(len(spec.layers)))
    if request.keeps_all:
        return make_plan(spec, {}, whole)
    given, planning, cutting = None, request.planning, request.cutting
    if request.plan is not None:
        given = load_plan(request.plan)
        given.require(spec)
        _require_weights(request, given.weights, "the plan's scores")
        if given.has_indices(spec):
            return given
    if planning.limited:
        planning.require_limits()
    wanted, by_hand = dict(request.sizes), given is None and not planning.limited
    if by_hand:
        # Before minutes of scoring, too.
        require_reachable(request, spec)
        layers = _layers(spec, planning, wanted)
        if layers == whole and (alone := make_plan(spec, wanted, whole)).has_indices(spec):
            return alone  # nothing is cut of any tensor
    chosen = given is None and (not by_hand or len(layers) < len(whole))
    if by_hand:
        request = no_more_rounds(request, spec, len(whole) - len(layers))
    scores = _scores(request, spec, progress, layers=chosen)
    how: dict[str, Any] = {"fallback": weight_magnitude(checkpoint, spec)} | cutting.arguments
    if given is not None:
        how |= {"by_layer": given.by_layer, "report": given.report}
        return make_plan(spec, given.sizes, given.layers, scores, **how)
    if by_hand:
        layers = _layers(spec, planning, wanted, scores)
        wanted.pop(DEPTH, None)
        return make_plan(spec, wanted, layers, scores, **how)
    result = planning.search(*cutting.counted(spec, scores))
    best = result.best
    return make_plan(spec, best.sizes, best.kept, scores, report=result.to_json(), **how)


def require_reachable(request: Pruning, spec: ModelSpec) -> None:
    """Raise MinitronError where no scores lead to the sizes and layers that were given by hand."""
    from minitron.cut.selection import rehearse

    wanted = dict(request.sizes)
    _require_less(spec, wanted)
    layers = _layers(spec, request.planning, wanted)
    wanted.pop(DEPTH, None)
    rehearse(spec, wanted, layers)


def _require_less(spec: ModelSpec, wanted: Mapping[str, int]) -> None:
    """Raise MinitronError for sizes that no cut of the model reaches."""
    for key, size in wanted.items():
        if size < 1:
            raise MinitronError(f"{key} = {size} leaves nothing; give at least 1.")
        # Which depths can be reached depends on the kinds of layers.
        if key != DEPTH and size > (whole := spec.named_sizes.get(key, size)):
            raise MinitronError(f"{key} = {size} is more than the model's {whole}; pruning only cuts.")
    spec.resized(wanted)


def _require_weights(request: Pruning, found: Mapping[str, Any], what: str) -> None:
    """Raise MinitronError where the model has other weights than those that scores were made of."""
    if not request.dequantise:  # whose scores were made of a copy in bf16
        require_weights(found, request.model, f"{what} were", "score this model with minitron score")


def _layers(
    spec: ModelSpec, planning: Planning, wanted: Mapping[str, int], scores: Scores | None = None
) -> tuple[int, ...]:
    """The layers that stay where their pattern or their number is given; all where neither is."""
    from minitron.memory.workload import Workload
    from minitron.search.depth import depth_of, match_pattern

    if planning.pattern is not None:
        return match_pattern(spec, planning.pattern, scores)
    count = planning.layers or wanted.get(DEPTH, len(spec.layers))
    if count == len(spec.layers):
        return tuple(range(count))
    # No layer is ranked by the memory it frees here: scores decide, so the workload does not matter.
    return depth_of(spec, Workload(1), count, scores=scores, keep_attention=planning.keep_attention)


def no_more_rounds(request: Pruning, spec: ModelSpec, dropped: int) -> Pruning:
    """The request whose scores rank no more layers than are dropped: where all layers are of one kind nothing but that
    rank says which these are, and every round reads the model once for each layer that is left."""
    scoring = request.scoring
    if len(set(spec.letters)) > 1 or scoring.max_dropped is not None or not dropped:
        return request
    return replace(request, scoring=replace(scoring, max_dropped=dropped))


def _scores(request: Pruning, spec: ModelSpec, progress: Progress, *, layers: bool) -> Scores:
    """Those that were given, or those that the calibration text gives; `layers` tells whether layers are chosen by
    them, which costs more than all the rest."""
    from minitron.cut.scores import load_scores

    if request.scores is not None:
        scores = load_scores(request.scores)
        scores.require(spec)
        _require_weights(request, scores.weights, "the scores")
        return scores
    if request.data is None:
        raise MinitronError("there are no scores; give --data with calibration text, or --scores.")
    from importance.score.calibrate import calibrate

    return calibrate(
        *(request.model, request.data, request.scoring if layers else replace(request.scoring, layers="none")),
        output=request.output,
        device=request.device,
        progress=progress,
    )
