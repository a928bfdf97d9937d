"""The dry runs of score, prune, quantize, distill and compress: the refusals of each, and what it would need.

Nothing is written, no weight is read but a sample, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.recipe_file import Stage
from importance.score.options import ScoringOptions
from minitron.errors import MinitronError
from minitron.files import refuse_existing
from pipeline.compression import RUN, Compression
from pipeline.dry_run import (
    KEPT_BYTES,
    TOKEN_BYTES,
    Foreseen,
    Sketch,
    Work,
    add_scoring,
    add_training,
    open_model,
    size_of,
)
from pipeline.pruning import Pruning, no_more_rounds, require_reachable
from pipeline.quantising import Quantising
from pipeline.several_cuts import cuts_of

if TYPE_CHECKING:
    from minitron.model.spec import ModelSpec


def rehearse_score(
    model: Path, data: Path, options: ScoringOptions, *, output: Path, overwrite: bool, device: str | None
) -> Foreseen:
    """What `score` would do; raises MinitronError for what it would refuse."""
    from minitron.cut.selection import require_cuttable

    refuse_existing(output, overwrite=overwrite, inputs=[model, data])
    folder, spec, checkpoint = open_model(model)
    require_cuttable(spec)
    sketch = Sketch(output, device, reads={f"model ({folder})": checkpoint.weight_bytes})
    sketch.text("text", data)
    add_scoring(sketch, spec, options)
    return sketch.done(spec, checkpoint, options.dtype)


def rehearse_prune(request: Pruning) -> Foreseen:
    """What `prune` would do; raises MinitronError for what it would refuse."""
    from minitron.cut.plan import load_plan

    request.planning.require_one_format("prune writes 16 bits", "use `minitron compress`")
    inputs = [path for path in (request.model, request.plan, request.scores, request.data) if path]
    refuse_existing(request.output, overwrite=request.overwrite, inputs=inputs)
    folder, spec, checkpoint = open_model(request.model, dequantise=request.dequantise)
    sketch = Sketch(request.output, request.device, reads={f"model ({folder})": checkpoint.weight_bytes})
    sketch.text("text", request.data)
    target, needs_scores = spec, not request.keeps_all
    if request.plan is not None:
        plan = load_plan(request.plan)
        plan.require(spec)
        target, needs_scores = plan.target(spec), not plan.has_indices(spec)
    elif request.planning.limited:
        target = _smallest_cut(request, spec)
    elif not request.keeps_all:
        require_reachable(request, spec)
        target = spec.resized(
            {key: size for key, size in request.sizes.items() if key != "num_hidden_layers"},
            tuple(range(_depth(request, spec))),
        )
        request = no_more_rounds(request, spec, len(spec.layers) - len(target.layers))
    _scores_for(sketch, request, spec, needed=needs_scores)
    share = target.parameters().total / spec.parameters().total
    sketch.writes[f"model ({request.output})"] = round(checkpoint.weight_bytes * share)
    sketch.work["prune"] = Work(read=round(checkpoint.weight_bytes * (1 + share)))
    sketch.memory = sketch.memory or {"one tensor": max(each.num_bytes for each in checkpoint.headers.values())}
    return sketch.done(spec, checkpoint, request.scoring.dtype)


def _depth(request: Pruning, spec: ModelSpec) -> int:
    """How many layers stay, by hand."""
    planning = request.planning
    if planning.pattern is not None:
        return len(planning.pattern)
    return planning.layers or request.sizes.get("num_hidden_layers", len(spec.layers))


def _smallest_cut(request: Pruning, spec: ModelSpec) -> ModelSpec:
    """The model that a search without scores chooses: about as large as the one that scores choose."""
    from minitron.cut.selection import rehearse

    request.planning.require_limits()
    best = request.planning.search(spec).best
    rehearse(spec, {key: size for key, size in best.sizes.items() if key != "num_hidden_layers"}, best.kept)
    return spec.resized({key: size for key, size in best.sizes.items() if key != "num_hidden_layers"}, best.kept)


def _scores_for(sketch: Sketch, request: Pruning, spec: ModelSpec, *, needed: bool) -> None:
    """Add the scores that are read, or made; raises MinitronError where there are none."""
    from minitron.cut.scores import load_scores

    if request.scores is not None:
        scores = load_scores(request.scores)
        scores.require(spec)
        sketch.reads[f"scores ({request.scores})"] = size_of(request.scores)
    elif request.data is not None:
        add_scoring(sketch, spec, request.scoring)
        del sketch.writes["scores"]  # which are not kept
    elif needed:
        raise MinitronError("there are no scores; give --data with calibration text, or --scores.")


def rehearse_quantise(request: Quantising) -> Foreseen:
    """What `quantize` would do; raises MinitronError for what it would refuse."""
    from minitron.model.axes import HIDDEN
    from minitron.quantise.assigned import assign

    inputs = [path for path in (request.model, request.data) if path]
    refuse_existing(request.output, overwrite=request.overwrite, inputs=inputs)
    folder, spec, checkpoint = open_model(request.model)
    assigned = assign(spec, checkpoint, request.wanted)
    if assigned.needs_inputs and request.data is None:
        raise MinitronError(f"{request.form} needs to see what linears read; give --data with calibration text.")
    sketch = Sketch(request.output, request.device, reads={f"model ({folder})": checkpoint.weight_bytes})
    sketch.text("text", request.data)
    sketch.writes[f"model ({request.output})"] = assigned.bytes_planned
    flops = 0.0
    sketch.memory = {"the largest tensor, fp32": 2 * max(each.num_bytes for each in checkpoint.headers.values())}
    if request.data is not None:
        flops = 2.0 * spec.parameters().active * request.samples * request.sequence_length
        layer = checkpoint.weight_bytes // max(len(spec.layers), 1)
        hidden = 4 * request.samples * request.sequence_length * spec.sizes[HIDDEN]
        sketch.memory |= {"weights of one layer": layer, "hidden states": hidden}
    sketch.work["quantize"] = Work(flops, checkpoint.weight_bytes + assigned.bytes_planned)
    return sketch.done(spec, checkpoint, "bf16")


def rehearse_distill(request: Distillation, recipe: Recipe | Sequence[Stage]) -> Foreseen:
    """What `distill` would do; raises MinitronError for what it would refuse."""
    from distill.run.request import Request
    from minitron.model.sources import cached_weights
    from minitron.model.stored import read_stored_spec, require_readable

    stages = [recipe] if isinstance(recipe, Recipe) else [stage.recipe for stage in recipe]
    if isinstance(recipe, Recipe) and not request.sources:
        raise MinitronError("there is no text to train on; give some with --data.")
    student, spec, checkpoint = open_model(request.student)
    teacher = cached_weights(request.teacher)
    if teacher is None:
        raise MinitronError(f"the weights of {request.teacher} are not on this machine; fetch them.")
    require_readable(teacher)
    Request(replace(request, student=student, teacher=teacher), stages[0]).check()
    sketch = Sketch(request.output, request.device)
    sketch.reads = {f"student ({student})": checkpoint.weight_bytes, f"teacher ({teacher})": size_of(teacher)}
    for source in request.sources:
        if not str(source.place).startswith("hf:"):
            sketch.text("text", source.path)
    sketch.text("held-out text", request.validation)
    parent, own = read_stored_spec(teacher).parameters(), spec.parameters()
    size = 1 if request.teacher_precision != "bf16" else 2 if stages[0].precision == "bf16" else 4
    kept = {} if request.offload_teacher or request.teacher_device else {"teacher": parent.total * size}
    add_training(sketch, own.total, kept, sum(one.total_tokens for one in stages), (own.active, parent.active))
    sketch.writes[f"model ({request.output})"] = 2 * own.total
    sketch.writes["training checkpoints, while it runs"] = KEPT_BYTES * own.total * stages[-1].keep_checkpoints
    return sketch.done(spec, checkpoint, stages[0].precision)


def rehearse_compress(request: Compression, *, overwrite: bool) -> Foreseen:
    """What `compress` would do; raises MinitronError for what it would refuse."""
    from judge.questions import read_questions
    from minitron.cut.selection import rehearse, require_cuttable
    from minitron.quantise.assigned import assign
    from pipeline.chain import require_exportable

    plannings = list(request.plannings.values()) or [request.planning]
    for planning in plannings:
        planning.require_limits()
    if not (request.output / RUN).is_file():
        refuse_existing(request.output, overwrite=overwrite, inputs=[request.model, request.data])
    folder, spec, checkpoint = open_model(request.model, dequantise=request.dequantise)
    require_cuttable(spec, by_layer=request.searching.sizes == "per-layer")
    if request.wanted is not None:
        assign(spec, checkpoint, request.wanted)
    request.planning.format_choices(spec, request.planning.workload(spec))
    require_exportable(request)
    if request.searching.prompts is not None:
        read_questions(request.searching.prompts)
    sketch = Sketch(request.output, request.device, reads={f"model ({folder})": checkpoint.weight_bytes})
    for name, text in (
        ("text", request.data),
        ("calibration text", request.calibration),
        ("held-out", request.heldout),
    ):
        sketch.text(name, text)
    if request.scores is not None:
        sketch.reads[f"scores ({request.scores})"] = size_of(request.scores)
    else:
        add_scoring(sketch, spec, request.scoring)
    whole, recipe, searching = spec.parameters(), request.recipe, request.searching
    if request.dequantise:
        sketch.writes["the model in bf16"] = 2 * whole.total
    trials = (searching.combinations + searching.evaluate) * searching.trial_samples if searching.measures else 0
    sketch.work["plan"] = Work(2.0 * whole.active * trials * request.scoring.sequence_length)
    for planning in plannings:
        best = planning.search(spec).best
        sizes = {key: size for key, size in best.sizes.items() if key != "num_hidden_layers"}
        rehearse(spec, sizes, best.kept)
        own = spec.resized(sizes, best.kept).parameters()
        _add_cuts(sketch, request, spec, own.total)
        name = "" if len(plannings) == 1 else f" of {len(sketch.writes)}"
        sketch.writes[f"pruned and distilled model{name}"] = 4 * own.total
        sketch.writes[f"training checkpoints{name}, while it runs"] = KEPT_BYTES * own.total * recipe.keep_checkpoints
        size = 1 if request.teacher_precision != "bf16" else 2 if recipe.precision == "bf16" else 4
        before = sketch.work.get("distill", Work()).flops
        add_training(
            sketch, own.total, {"teacher": whole.total * size}, recipe.total_tokens, (own.active, whole.active)
        )
        sketch.work["distill"] = Work(before + sketch.work["distill"].flops)
    read = size_of(request.heldout) // TOKEN_BYTES if request.heldout else (sketch.tokens or 0) // 20
    if request.evaluation.samples is not None:
        read = min(read, request.evaluation.samples * request.evaluation.sequence_length)
    sketch.work["evaluate"] = Work(2.0 * 3 * whole.active * read * len(plannings))
    sketch.notes.append("the architecture is that of a search without scores; scores may choose another one as large")
    return sketch.done(spec, checkpoint, recipe.precision)


def _add_cuts(sketch: Sketch, request: Compression, spec: ModelSpec, last: int) -> None:
    """Add the cuts that come before the last one, which leaves `last` parameters: each leaves what it trained, and the
    next scores and searches anew."""
    left = cuts_of(request, spec, last)
    if len(left) == 1:
        return
    sketch.notes.append(f"{len(left)} cuts: {', '.join(f'{one:,}' for one in left)} parameters")
    for number, parameters in enumerate(left[:-1], 1):
        sketch.writes[f"pruned and distilled model of cut {number}"] = 4 * parameters
    scorings = len(left)
    if request.scores is not None:
        # Which are those of the first cut alone.
        add_scoring(sketch, spec, request.scoring)
        scorings -= 1
    sketch.writes["scores"] *= scorings
    for step, times in (("score", scorings), ("plan", len(left))):
        one = sketch.work[step]
        sketch.work[step] = Work(times * one.flops, times * one.read)
