"""Sentences of a report, from the document alone: the same in HTML and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from minitron.locks import resolved
from minitron.memory.footprint_lines import TITLES
from minitron.memory.limits import MEMORY, SORTS, told_of
from minitron.memory.roofline import ERROR
from minitron.model.sources import title
from minitron.units import format_bytes, format_parameters

Document = Mapping[str, Any]

TIMES: Final = "\u00d7"
MINUS: Final = "\u2212"

ORIGIN_LABELS: Final[dict[str, str]] = {
    "exact": "follows from config.json and the workload",
    "published": "from a publication or an engine's source",
    "estimated": "from logs of other runs; yours will differ",
    "given": "given by the user",
}
"""origin of a number -> what that means."""


SPEED_COLUMNS: Final = ("", "sequences", "output, tokens/s", "decode, tokens/s", "prefill, tokens/s", "first token, s")
"""The columns of the table of speeds; output is that of answers over the time of prompts and answers."""


def model_name(model: str) -> str:
    """What a model is called: of a path its last part, without `config.json` and the ending."""
    path = Path(model)
    if path.name == "config.json":
        path = resolved(path).parent if path.parent == Path() else path.parent
    if path.parent.name == "snapshots":
        return title(path)
    return (path.name.removesuffix(".json") or resolved(path).name) if model else "the model"


def line_label(name: str) -> str:
    """How a line of a footprint is called."""
    return TITLES.get(name, name.replace("_", " "))


def memory_unit(document: Document) -> tuple[str, int]:
    """The unit of all memory axes, and its bytes: the largest in which the budget or the model comes to one."""
    most = max(document["budget"]["available_bytes"], document["parent"]["total_bytes"])
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    return next((unit for unit in units if most >= unit[1]), units[-1])


def parameter_unit(document: Document) -> tuple[str, float]:
    """The unit of all axes of parameters, and how many it is: billions, millions or thousands."""
    units = (("B", 1e9), ("M", 1e6), ("k", 1e3))
    return next((unit for unit in units if document["parent"]["parameters"] >= unit[1]), units[-1])


def sequences(count: int) -> str:
    """`1 sequence`, `8 sequences`."""
    return "1 sequence" if count == 1 else f"{count:,} sequences"


def serving(document: Document) -> str:
    """The workload in words: 131,072 tokens times 1 sequence."""
    workload = document["workload"]
    return f"{workload['context_tokens']:,} tokens {TIMES} {sequences(workload['batch_sequences'])}"


def device(document: Document) -> str:
    """What there is: the GPU's name, or the budget."""
    gpu, gpus = document["gpu"], document["workload"]["tensor_parallel_gpus"]
    if gpu is None:
        return f"a budget of {format_bytes(document['budget']['available_bytes'])}"
    return str(gpu["name"]) if gpus == 1 else f"{gpus} {TIMES} {gpu['name']}"


def chosen(document: Document) -> Mapping[str, Any] | None:
    """The chosen candidate, None where nothing fits."""
    place = document["chosen_index"]
    found: Mapping[str, Any] | None = None if place is None else document["candidates"][place]
    return found


def is_parent(document: Document, candidate: Mapping[str, Any]) -> bool:
    """Whether a candidate is the model as it is."""
    same = all(candidate[part] == document["parent"][part] for part in ("sizes_count", "kept_layer_indices"))
    return same and not formats(document, candidate) and not candidate.get("by_layer_count")


def sizes_by_layer(document: Document, candidate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(size, the layers' own) of every size in which layers of a kind differ: `768 in layer 4, 512 in layer 9`."""
    labels = document["model"]["size_labels"]
    return [
        (labels[key], ", ".join(f"{size:,} in layer {layer}" for layer, size in own.items()))
        for key, own in candidate.get("by_layer_count", {}).items()
    ]


def architecture(document: Document, candidate: Mapping[str, Any], keys: Sequence[str] | None = None) -> str:
    """The sizes that tell candidates apart: `56 layers, hidden 4,480, FFN 15,680`."""
    labels, sizes = document["model"]["size_labels"], candidate["sizes_count"]
    told = []
    for key in candidate["shown_sizes"] if keys is None else keys:
        size = sizes.get(key)
        if size is None:
            told.append(f"no {labels[key]}")
        else:
            told.append(f"{size:,} layers" if key == "num_hidden_layers" else f"{labels[key]} {size:,}")
    return ", ".join([*told, *formats(document, candidate)])


def formats(document: Document, candidate: Mapping[str, Any]) -> list[str]:
    """`attention in int8`, of every part that is not kept as in the model."""
    workload = document["workload"]
    return [
        f"{part} in {form}"
        for part, form in candidate.get("formats", {}).items()
        if form != workload["kv" if part == "kv" else "weights"]
    ]


def changes(document: Document, candidate: Mapping[str, Any]) -> list[str]:
    """Config keys whose size the candidate changes; a size that no layer has any more among them."""
    before = document["parent"]["sizes_count"]
    return [key for key, size in before.items() if candidate["sizes_count"].get(key) != size]


def verdict(document: Document) -> str:
    """Whether the model fits as it is, and by how much."""
    parent, spare = document["parent"], document["parent"]["spare_bytes"]
    budget = format_bytes(document["budget"]["available_bytes"])
    if spare >= 0:
        return f"It needs {format_bytes(parent['total_bytes'])} of {budget}: {format_bytes(spare)} to spare."
    weights = parent["lines_bytes"].get("weights", 0)
    alone = " Its weights alone exceed the budget." if weights > document["budget"]["available_bytes"] else ""
    return f"It needs {format_bytes(parent['total_bytes'])} of {budget}: {format_bytes(-spare)} too much.{alone}"


def summary(document: Document) -> str:
    """Fits or not, by how much, and what was chosen: one sentence."""
    name, parent, best = document["model"]["name"], document["parent"], chosen(document)
    # Other limits are told beside (how_obtained).
    spare = parent["spare_bytes"]
    fits = spare >= 0
    head = (
        f"{name} {'fits' if fits else 'does not fit'} {device(document)} at {serving(document)}: it needs "
        f"{format_bytes(parent['total_bytes'])} of {format_bytes(document['budget']['available_bytes'])}, "
        f"{format_bytes(abs(spare))} {'to spare' if fits else 'too much'}"
    )
    if best is None:
        return f"{head}, and none of {document['searched_architectures']:,} smaller architectures fits either."
    if is_parent(document, best):
        return f"{head}, so no pruning is needed."
    kept, changed = best["parameters"] / parent["parameters"], changes(document, best)
    return (
        f"{head}; {'cut to' if changed else 'with'} {architecture(document, best, changed)} it keeps "
        f"{format_parameters(best['parameters'])} parameters ({kept:.0%}) and needs "
        f"{format_bytes(best['total_bytes'])}, "
        f"{format_bytes(best['spare_bytes'])} to spare."
        + "".join(f" It keeps {_limit(limit)}." for limit in document.get("limits", ()) if limit["name"] != MEMORY)
    )


def _limit(limit: Mapping[str, Any]) -> str:
    """A limit as a clause: parameters: 6.98 B of at most 7 B; this limit binds."""
    bound = limit["least"] if limit["most"] is None else limit["most"]
    return told_of(limit["name"], bound, limit["parent"], limit["chosen"], binds=limit["binds"])


def budget_terms(document: Document) -> str:
    """The terms of the budget: 22.060 GiB times 0.95 - 1.300 GiB reserved."""
    budget = document["budget"]
    used = f" {TIMES} {budget['utilization_share']:g}" if budget["utilization_share"] < 1 else ""
    reserved = f" {MINUS} {format_bytes(budget['reserve_bytes'])} reserved" if budget["reserve_bytes"] else ""
    return f"{format_bytes(budget['usable_bytes'])}{used}{reserved}"


def budget_sum(document: Document) -> str:
    """The same with its result, if that differs."""
    terms, result = budget_terms(document), format_bytes(document["budget"]["available_bytes"])
    return result if terms == result else f"{terms} = {result}"


def numbers_kept(document: Document) -> str:
    """In which formats the numbers are kept."""
    workload = document["workload"]
    parts = [f"weights {workload['weights']}", f"KV cache {workload['kv']}"]
    parts += [f"{component} {form}" for component, form in workload["keep"].items()]
    if "ssm_state" in document["model"]["sizes_count"] or "ssm_state" in document["parent"]["lines_bytes"]:
        parts += [f"SSM state {workload['ssm_state']}", f"convolution state {workload['conv_state']}"]
    return ", ".join(parts)


def engine_log(document: Document, which: str) -> str:
    """What the engine's log should say of the model (`parent`) or of the `chosen` one; empty for no engine."""
    labels, found = document["engine_log"]["labels"], document["engine_log"][which]
    told = "; ".join(f"{labels[name]} {value:,}" for name, value in found.items())
    return f"To be held against the log of {document['workload']['engine']['name']}: {told}." if told else ""


def how_obtained(document: Document) -> list[str]:
    """How the numbers came about, a sentence each."""
    workload = document["workload"]
    told = [
        "All sizes follow from config.json; no weights were read and nothing was run."
        if document["sieves"] is None
        else "All sizes follow from config.json; the loss of candidates was measured with the weights.",
        f"{document['searched_architectures']:,} architectures were counted, "
        f"{document['feasible_architectures']:,} of them fit; the list is {document['ranking']}.",
        f"Number formats: {numbers_kept(document)}.",
        "The engine is plain: the sum of weights, KV cache and states, without an engine's block rounding and buffers."
        if workload["engine"]["name"] == "plain"
        else f"The engine is {workload['engine']['name']}: memory is counted with its blocks and buffers.",
    ]
    told += [f"Limit: {_limit(limit)}." for limit in document.get("limits", ())]
    if any(SORTS[limit["name"]].timed for limit in document.get("limits", ())):
        told.append(f"Latency and throughput are {ERROR}.")
    if workload["tensor_parallel_gpus"] > 1:
        told.append(f"Sizes are per GPU, of {workload['tensor_parallel_gpus']} that the model is split across.")
    estimated = [term["title"] for term in document["terms"]["parent"] if term["origin"] == "estimated"]
    if estimated:
        told.append(f"Estimated, not counted: {', '.join(estimated)}.")
    told.append("1 GiB = 2^30 bytes, 1 MiB = 2^20 bytes; 1k tokens = 1,024.")
    return told


def limit(series: Mapping[str, Any], unit: str) -> str:
    """The largest context or batch at which one model fits, in words."""
    largest = series[f"largest_{unit}"]
    if largest is None:
        return "any"
    return f"{largest:,}" if largest else "none"


def warned(document: Document, candidate: Mapping[str, Any]) -> bool:
    """Whether a warning is about this very candidate."""
    return any(candidate["label"] in warning["labels"] for warning in document["warnings"])


def warning_text(warning: Mapping[str, Any]) -> str:
    """A warning with the candidates that it is about in front."""
    return f"{', '.join(warning['labels'])}: {warning['text']}" if warning["labels"] else str(warning["text"])


def task_metrics(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`birds acc` -> value, of lm-eval's metrics by task; standard errors are left out."""
    return {
        f"{task} {metric}": value
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if "_stderr" not in metric
    }
