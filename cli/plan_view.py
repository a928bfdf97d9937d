"""What `minitron plan` prints: the budget, the model's memory, the candidates that fit, and the chosen one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cli import show
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from minitron.engines.table import Fact
    from minitron.memory.budget import Budget
    from minitron.memory.footprint import Footprint
    from minitron.memory.footprint_lines import FootprintLine
    from minitron.memory.questions import Answer, Remedy
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec
    from minitron.search.candidate import Candidate
    from minitron.search.search import SearchResult

_MAP_WIDTH: Final = 60
_SHORT: Final = 34
_STATES: Final = ("conv_state", "ssm_state", "prefix_states")


def print_budget(model: object, budget: "Budget", workload: "Workload") -> None:
    """The budget, and the workload to serve."""
    where = "a budget of" if budget.gpu is None else f"{budget.gpu.name},"
    if workload.tensor_parallel > 1:
        where = f"each of {workload.tensor_parallel} x {where}"
    sequences = "1 sequence" if workload.batch == 1 else f"{workload.batch:,} sequences"
    show.line(f"{model} on {where} {format_bytes(budget.usable)}; {workload.context:,} tokens x {sequences}")
    reserved = f" - {format_bytes(budget.reserve)} reserved" if budget.reserve else ""
    used = f" x {budget.utilization:g}" if budget.utilization < 1 else ""
    reckoned = f"{format_bytes(budget.usable)}{used}{reserved} = " if used or reserved else ""
    show.line(f"Budget: {reckoned}{format_bytes(budget.available)}")


def print_cautions(cautions: Sequence[str]) -> None:
    """A line each."""
    for caution in cautions:
        show.paragraph(f"Note: {caution}")


def print_model(title: str, terms: "Sequence[FootprintLine]", available: int) -> None:
    """The bar and the terms of a footprint, and whether it fits."""
    show.line("")
    show.memory_bar(_parts({term.name: term.bytes for term in terms}), available)
    show.line("")
    rows: list[list[show.Cell]] = [
        [term.title, format_bytes(term.bytes), term.origin, term.filled if _is_short(term) else "see below"]
        for term in terms
    ]
    total = sum(term.bytes for term in terms)
    show.table(title, ["memory", "size", "origin", "how"], [*rows, ["total", format_bytes(total), None, None]])
    for term in terms:
        if not _is_short(term):
            show.paragraph(f"{term.title}: {term.filled}")
        if term.origin in ("published", "estimated"):
            show.paragraph(f"{term.title} ({term.origin}): {term.note}")
    show.line(_verdict(terms, available))


def _is_short(term: "FootprintLine") -> bool:
    """Whether the numbers go into a table of 80 columns."""
    return len(term.filled) <= _SHORT


def _parts(lines: dict[str, int]) -> list[tuple[str, int]]:
    weights = sum(lines.get(name, 0) for name in ("weights", "mtp_weights", "lora"))
    cache, state = lines.get("kv_cache", 0), sum(lines.get(name, 0) for name in _STATES)
    rest = sum(lines.values()) - weights - cache - state
    return [("weights", weights), ("KV", cache), ("state", state), ("rest", rest)]


def _verdict(terms: "Sequence[FootprintLine]", available: int) -> str:
    over = sum(term.bytes for term in terms) - available
    if over <= 0:
        return f"It fits, {format_bytes(-over)} to spare."
    weights = next(term.bytes for term in terms if term.name == "weights")
    alone = " Its weights alone exceed the budget." if weights > available else ""
    return f"It does not fit: {format_bytes(over)} too much.{alone}"


def print_engine_log(facts: "Sequence[Fact]", workload: "Workload") -> None:
    """What the engine's log should say once it has loaded the model."""
    from minitron.engines.table import ENGINES

    if not facts:
        return
    title = ENGINES[workload.engine.name].title
    show.line("")
    show.table(f"To be held against {title}'s log", ["", "number", ""], [[f.label, f.value, f.unit] for f in facts])


def print_remedies(remedies: "Sequence[Remedy]") -> None:
    """Changes other than pruning that make the model fit."""
    if not remedies:
        return
    rows: list[list[show.Cell]] = [
        [remedy.change, remedy.flags, format_bytes(remedy.total), format_bytes(remedy.available - remedy.total)]
        for remedy in remedies
    ]
    show.line("")
    head = ["change", "options", "memory", "to spare"]
    if any(remedy.price for remedy in remedies):
        head.append("KL measured, nats")
        rows = [[*row, remedy.price] for row, remedy in zip(rows, remedies, strict=True)]
    show.table("What would make it fit, besides pruning", head, rows)


def print_answer(answer: "Answer") -> None:
    """The answer to an inverse question."""
    from minitron.memory.questions import QUESTIONS

    if answer.value is None:
        show.line(f"Memory sets no limit to the {QUESTIONS[answer.question]}: what the model keeps stops growing.")
        return
    value = f"{answer.value:,}" if isinstance(answer.value, int) else answer.value
    names = {
        "context": f"Longest context: {value} tokens",
        "batch": f"Largest batch: {value} sequences",
        "gpu": f"Smallest GPU: {value}",
        "weights": f"Highest weight precision: {value}",
    }
    spare = format_bytes(answer.budget.available - answer.total)
    show.line(f"{names[answer.question]} ({format_bytes(answer.total)}, {spare} to spare).")


def print_candidates(spec: "ModelSpec", result: "SearchResult") -> None:
    """The candidates, with a column for every size that differs among them."""
    names = ["num_hidden_layers", *spec.keys]
    varied = [name for name in names if len({candidate.sizes.get(name) for candidate in result.candidates}) > 1]
    same = [
        f"{_short(spec, name)} {result.best.sizes[name]:,}"
        for name in result.best.sizes
        if name not in varied and result.best.sizes[name] != spec.named_sizes[name]
    ]
    parts = _parts_that_differ(result)
    same += _formats_in_common(result, parts)
    rows: list[list[show.Cell]] = [
        [
            place,
            *(candidate.sizes.get(name) for name in varied),
            *(_form(candidate, part) for part in parts),
            format_parameters(candidate.parameters),
            format_bytes(candidate.footprint.total),
        ]
        for place, candidate in enumerate(result.candidates, 1)
    ]
    show.line(f"{result.searched:,} architectures counted, {result.feasible:,} fit.")
    show.paragraph(f"The best of them, {result.ranking}{':' if not same else ', all with ' + ', '.join(same) + ':'}")
    show.line("")
    show.table("", ["", *(_short(spec, name) for name in varied), *parts, "parameters", "memory"], rows)


def _form(candidate: "Candidate", part: str) -> str | None:
    return None if candidate.formats is None else candidate.formats.of.get(part)


def _parts_that_differ(result: "SearchResult") -> list[str]:
    """Parts of the model whose formats are not those of all candidates."""
    parts = dict.fromkeys(part for one in result.candidates if one.formats for part in one.formats.of)
    return [part for part in parts if len({_form(one, part) for one in result.candidates}) > 1]


def _formats_in_common(result: "SearchResult", varied: list[str]) -> list[str]:
    formats = {} if result.best.formats is None else result.best.formats.of
    return [f"{part} in {form}" for part, form in formats.items() if part not in varied]


def print_chosen(spec: "ModelSpec", result: "SearchResult") -> None:
    """The chosen architecture beside the model: what changes, and every term of its memory."""
    from minitron.search.format_choices import KV, STATE

    best, parent = result.best, result.parent
    left, spare = format_parameters(best.parameters), format_bytes(result.budget.available - best.footprint.total)
    rows: list[list[show.Cell]] = [
        [name, parent.sizes[name], best.sizes.get(name)]
        for name in ["num_hidden_layers", *spec.keys]
        if best.sizes.get(name) != parent.sizes[name]
    ]
    own, workload = {} if best.formats is None else best.formats.told, result.workload
    whole = {part: {KV: workload.kv, STATE: workload.ssm_state}.get(part, workload.weights) for part in own}
    rows += [[f"{part} in", whole[part], form] for part, form in own.items() if form != whole[part]]
    rows += _lines(parent.footprint, best.footprint)
    show.table(
        f"Chosen: number {result.chosen + 1}, {left} parameters, {spare} to spare", ["", "model", "chosen"], rows
    )
    if best.formats is not None:
        from minitron.search.rivals import by_score, formats_cautions

        show.paragraph(by_score(result))
        _print_costs(spec, result)
        print_cautions(formats_cautions(spec, result))
    _print_map(parent, best)
    _print_limits(result)


def _print_costs(spec: "ModelSpec", result: "SearchResult") -> None:
    """What each part of the chosen candidate costs."""
    from minitron.search.part_costs import COST_COLUMNS, part_costs

    rows: list[list[show.Cell]] = [[cell or None for cell in one.cells] for one in part_costs(spec, result)]
    show.table("What each part costs", [*COST_COLUMNS], rows)


def _print_limits(result: "SearchResult") -> None:
    """Every limit where there are several, and which binds."""
    from minitron.memory.limits import SORTS
    from minitron.memory.roofline import ERROR

    for held in result.limits:
        show.paragraph(f"Limit: {held.told(result.best.measures[held.name])}")
    if any(SORTS[held.name].timed for held in result.limits):
        show.paragraph(f"Latency and throughput are {ERROR} (docs/speed.md).")


def _lines(whole: "Footprint", cut: "Footprint") -> list[list[show.Cell]]:
    from minitron.memory.footprint_lines import TITLES

    first, second = whole.to_json(), cut.to_json()
    return [
        [title, format_bytes(first.get(name, 0)), format_bytes(second.get(name, 0))]
        for name, title in TITLES.items()
        if first.get(name, 0) or second.get(name, 0)
    ]


def _print_map(parent: "Candidate", best: "Candidate") -> None:
    if len(best.kept) == len(parent.kept):
        return
    marks = "".join(letter if layer in best.kept else "." for layer, letter in enumerate(parent.letters))
    for start in range(0, len(marks), _MAP_WIDTH):
        show.line(f"model   {parent.letters[start : start + _MAP_WIDTH]}")
        show.line(f"chosen  {marks[start : start + _MAP_WIDTH]}")


def print_speed(speed: Mapping[str, Any]) -> None:
    """The roofline's estimates by concurrency."""
    rows: list[list[show.Cell]] = [
        [
            each["label"],
            each["batch_sequences"],
            each["output_tokens_per_s"],
            each["decode_tokens_per_s"],
            each["prefill_tokens_per_s"],
            each["first_token_s"],
        ]
        for each in speed["rows"]
    ]
    columns = ["", "sequences", "output tokens/s", "decode/s", "prefill/s", "first token s"]
    show.table("Speed (an estimate)", columns, rows)
    show.paragraph(speed["note"])


def print_warnings(result: "SearchResult") -> None:
    """Warnings from published runs about the chosen candidate."""
    if result.warnings or len(result.best.kept) < len(result.parent.kept):
        show.line("")
    for zone in result.warnings:
        show.paragraph(f"Warning: {zone.sentence} ({zone.source})")


def _short(spec: "ModelSpec", name: str) -> str:
    """A size's name as an axis: config keys are too long to head a column."""
    return "layers" if name == "num_hidden_layers" else spec.keys[name][0]
