"""`minitron plan`: which architectures fit, and what each costs.

The document of --json, sizes in bytes:

    {"gpu", "workload", "budget": {"usable", "utilization", "reserve", "workspace", "available"},
     "parent": CANDIDATE, "candidates": [CANDIDATE, ...], "chosen", "searched", "feasible", "ranking"}

    CANDIDATE = {"sizes": {config key: size}, "layers", "kept_layers", "parameters",
                 "footprint": {"weights", "kv_cache", "conv_state", "ssm_state", "workspace", "total"}, "fits", "score"}

`candidates` are the best that fit, best first, and `chosen` is an index into them.  `layers` has a letter a layer,
`kept_layers` says which layers of the model they are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import show
from cli.options import JsonOption, ModelArgument, OverwriteOption, ScoresOption
from cli.planning import Planning, takes_planning
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from minitron.memory import Workload
    from minitron.scores import Scores
    from minitron.search import Candidate, SearchResult
    from minitron.spec import ModelSpec

_MAP_WIDTH: Final = 60

_TERMS: Final = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "conv_state": "conv state",
    "ssm_state": "SSM state",
    "workspace": "workspace",
    "total": "total",
}

PlanOutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the chosen plan here, for `minitron prune --plan`.")
]


@takes_planning
def command(
    model: ModelArgument,
    planning: Planning,
    scores: ScoresOption = None,
    output: PlanOutputOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say which architectures fit a GPU, and what each costs. Reads no weights."""
    from minitron.files import refuse_existing
    from minitron.spec import read_spec

    spec = read_spec(model)
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    known = None
    if scores is not None:
        from minitron.scores import load_scores

        known = load_scores(scores)
    result = planning.search(spec, known)
    if output is not None:
        _save(model, spec, result, known, output, overwrite=overwrite)
    if as_json:
        show.document(result.to_json())
        return
    print_search(model, spec, result, planning)
    if output is not None:
        show.line(f"Written: {output}")


def _save(
    model: Path, spec: "ModelSpec", result: "SearchResult", scores: "Scores | None", path: Path, *, overwrite: bool
) -> None:
    """Write the chosen plan, with the indices that stay where there are scores."""
    from minitron.plan import make_plan

    def by_magnitude(axis: str, layer: int | None) -> Any:
        # Reads the weights of the few axes that no score covers, and torch for that: only where it is needed.
        from minitron.checkpoint import Checkpoint
        from minitron.magnitude import weight_magnitude

        return weight_magnitude(Checkpoint(model), spec)(axis, layer)

    best, fallback = result.best, by_magnitude if model.is_dir() else None
    plan = make_plan(spec, best.sizes, best.kept, scores, fallback=fallback, report=result.to_json())
    plan.save(path, overwrite=overwrite)


def print_search(model: Path, spec: "ModelSpec", result: "SearchResult", planning: Planning) -> None:
    """What a person reads: the budget, the model against it, what fits, and the choice."""
    budget, workload = result.budget, result.workload
    where = "a budget of" if budget.gpu is None else f"{budget.gpu.name},"
    sequences = "1 sequence" if workload.batch == 1 else f"{workload.batch:,} sequences"
    show.line(f"{model} on {where} {format_bytes(budget.usable)}; {workload.context:,} tokens x {sequences}")
    reserved = f" - {format_bytes(budget.reserve)} reserved" if budget.reserve else ""
    available = format_bytes(budget.available)
    used = f" x {budget.utilization:g}" if budget.utilization < 1 else ""
    reckoned = f"{format_bytes(budget.usable)}{used}{reserved} = " if used or reserved else ""
    show.line(f"Budget: {reckoned}{available}")
    if budget.gpu is not None and budget.gpu.unified:
        show.line("This device's memory is shared with the CPU: the system and its page cache take their part of it.")
    show.line("")
    parent = result.parent
    show.table(
        f"The model: {len(parent.letters)} layers, {format_parameters(parent.parameters)} parameters",
        ["memory", "size", "how it is counted"],
        _terms(spec, parent, workload, _origin_of_workspace(planning)),
    )
    show.line(_verdict(parent, budget.available))
    show.line("")
    _print_candidates(spec, result)
    _print_chosen(spec, result)


def _terms(spec: "ModelSpec", candidate: "Candidate", workload: "Workload", workspace: str) -> list[list[show.Cell]]:
    """A row a term of the footprint."""
    layers = spec.kind_counts()
    attention = sum(layers[kind] for kind, cache in spec.family.cache.items() if cache.kv_per_token)
    mamba = sum(layers[kind] for kind, cache in spec.family.cache.items() if cache.ssm_state)
    mtp = ", without the MTP block" if spec.mtp_layers else ""
    how = {
        "weights": f"every parameter in {workload.weights}{mtp}",
        "kv_cache": f"{attention} attention layers, {workload.kv}",
        "conv_state": f"{mamba} Mamba layers, {workload.conv_state}",
        "ssm_state": f"{mamba} Mamba layers, {workload.ssm_state}",
        "workspace": workspace,
        "total": "",
    }
    terms = candidate.footprint.to_json()
    return [
        [_TERMS[name], format_bytes(terms[name]), how[name]]
        for name in terms
        if terms[name] or name in ("weights", "kv_cache", "workspace", "total")
    ]


def _origin_of_workspace(planning: Planning) -> str:
    if planning.workspace is not None:
        return "activations and buffers, given"
    if planning.gpu is not None:
        return "activations and buffers, estimated"
    return "not counted unless --workspace says so"


def _verdict(parent: "Candidate", available: int) -> str:
    over = parent.footprint.total - available
    if over <= 0:
        return f"It fits, {format_bytes(-over)} to spare."
    alone = " Its weights alone exceed the budget." if parent.footprint.weights > available else ""
    return f"It does not fit: {format_bytes(over)} too much.{alone}"


def _print_candidates(spec: "ModelSpec", result: "SearchResult") -> None:
    """The list, with a column for every size that differs within it."""
    names = ["num_hidden_layers", *spec.keys]
    varied = [name for name in names if len({candidate.sizes.get(name) for candidate in result.candidates}) > 1]
    same = [
        f"{_short(spec, name)} {result.best.sizes[name]:,}"
        for name in result.best.sizes
        if name not in varied and result.best.sizes[name] != spec.named_sizes[name]
    ]
    rows: list[list[show.Cell]] = [
        [
            place,
            *(candidate.sizes.get(name) for name in varied),
            format_parameters(candidate.parameters),
            format_bytes(candidate.footprint.total),
        ]
        for place, candidate in enumerate(result.candidates, 1)
    ]
    show.line(f"{result.searched:,} architectures counted, {result.feasible:,} fit.")
    show.line(f"The best of them, {result.ranking}{':' if not same else ', all with ' + ', '.join(same) + ':'}")
    show.line("")
    show.table("", ["", *(_short(spec, name) for name in varied), "parameters", "memory"], rows)


def _print_chosen(spec: "ModelSpec", result: "SearchResult") -> None:
    """The chosen architecture beside the model: what changes, and every term of its memory."""
    best, parent = result.best, result.parent
    left, spare = format_parameters(best.parameters), format_bytes(result.budget.available - best.footprint.total)
    rows: list[list[show.Cell]] = [
        [name, parent.sizes[name], best.sizes.get(name)]
        for name in ["num_hidden_layers", *spec.keys]
        if best.sizes.get(name) != parent.sizes[name]
    ]
    whole, cut = parent.footprint.to_json(), best.footprint.to_json()
    rows += [[_TERMS[term], format_bytes(whole[term]), format_bytes(cut[term])] for term in whole if whole[term]]
    show.table(
        f"Chosen: number {result.chosen + 1}, {left} parameters, {spare} to spare", ["", "model", "chosen"], rows
    )
    if len(best.kept) < len(parent.kept):
        marks = "".join(letter if layer in best.kept else "." for layer, letter in enumerate(parent.letters))
        for start in range(0, len(marks), _MAP_WIDTH):
            show.line(f"model   {parent.letters[start : start + _MAP_WIDTH]}")
            show.line(f"chosen  {marks[start : start + _MAP_WIDTH]}")


def _short(spec: "ModelSpec", name: str) -> str:
    """A size's name as an axis: config keys are too long to head a column."""
    return "layers" if name == "num_hidden_layers" else spec.keys[name][0]
