"""The planner as data: the memory laws of models, every GPU and what is asked at first.

report.json holds it of the model and the chosen one (`law`), and the page of `minitron plan --page` of many models.
planner.js computes with it; it knows the operations of expressions (minitron.memory.expressions) and no law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.memory.budget import Budget
from minitron.memory.footprint_lines import TITLES
from minitron.memory.formats import FORMATS
from minitron.memory.gpus import GPUS, Gpu
from minitron.memory.law import law
from minitron.memory.questions import keeps_kv
from minitron.memory.serve_line import share_of
from minitron.memory.workload import Engine, Workload, step_tokens, workload_of
from minitron.model.spec import ModelSpec
from minitron.search.search import SearchResult
from minitron.units import format_parameters

MODELS: Final = Path(__file__).with_name("models.json")

CONTEXT: Final = 32_768
"""Tokens that the page asks for at first, or the longest that the model is made for."""


@dataclass(frozen=True)
class Asked:
    """What is asked at first."""

    workload: Workload
    budget: Budget


def model_entry(
    name: str, spec: ModelSpec, workload: Workload, workspace: int | None = None, label: str = ""
) -> dict[str, Any]:
    """One model: what it is called, what a person should know of it, and its law."""
    parameters = format_parameters(spec.parameters().total)
    longest = spec.value("max_position_embeddings")
    return {
        "name": name,
        "label": label or name,
        "told": f"{spec.family.name}, {len(spec.layers)} layers, {parameters} parameters",
        "longest_context_tokens": longest if isinstance(longest, int) and not isinstance(longest, bool) else None,
        "law": law(spec, workload, workspace, name),
    }


def page_entry(name: str, spec: ModelSpec) -> dict[str, Any]:
    """One model of the page, at a context that it is made for; raises MinitronError where it cannot be counted."""
    longest = spec.value("max_position_embeddings")
    context = min(CONTEXT, longest) if isinstance(longest, int) and longest > 0 else CONTEXT
    return model_entry(name, spec, workload_of(spec, context))


def bundled_models() -> dict[str, dict[str, Any]]:
    """name -> config.json of the models that come with Minitron."""
    found: dict[str, dict[str, Any]] = read_json(MODELS)
    return found


def planner_document(models: Sequence[Mapping[str, Any]], asked: Asked, first: int = 0) -> dict[str, Any]:
    """All that the page computes with; `first` is the place of the model that is shown at first."""
    workload, budget = asked.workload, asked.budget
    devices = {gpu.name: gpu for gpu in GPUS.values()}
    given = _given(budget)
    gpus = [] if given is None else [given]
    gpus += [told for gpu in devices.values() if (told := _gpu(gpu, workload, budget)) is not None]
    return {
        "models": list(models),
        "gpus": gpus,
        "engines": {name: engine.title for name, engine in ENGINES.items()},
        "titles": dict(TITLES),
        "asked": {
            "model_index": first,
            "gpu": gpus[0]["name"] if budget.gpu is None or budget.gpu.name not in devices else budget.gpu.name,
            "engine": workload.engine.name,
            "context_tokens": workload.context,
            "batch_sequences": workload.batch,
            "tensor_parallel_gpus": workload.tensor_parallel,
        },
    }


def law_document(spec: ModelSpec, result: SearchResult, name: str) -> dict[str, Any]:
    """The planner of a report: the laws of the model and of the chosen candidate, where that is another."""
    workload, budget = result.workload, result.budget
    models = [model_entry(name, spec, workload, budget.workspace, "the model")]
    if result.candidates:
        best = result.best
        left = best.left(spec)
        served = result.served(left)
        if best.sizes != result.parent.sizes or best.kept != result.parent.kept or served != workload:
            label = f"chosen, #{result.chosen + 1}"
            models.append(model_entry("PRUNED", left, served, budget.workspace, label))
    return planner_document(models, Asked(workload, budget))


def _given(budget: Budget) -> dict[str, Any] | None:
    """What was given in place of a GPU of the table, of which nothing but the memory is known."""
    if budget.gpu is not None and budget.gpu.name in GPUS and GPUS[budget.gpu.name].usable == budget.gpu.usable:
        return None
    name = "the budget" if budget.gpu is None else budget.gpu.name
    share = share_of(budget)
    each = {
        engine: {"available_bytes": budget.available, "step_tokens": step_tokens(engine, budget.gpu), "share": share}
        for engine in ENGINES
    }
    return {
        "name": name,
        "usable_bytes": budget.usable,
        "engines": each,
        "without_kernels": {},
        "emulated": [],
        "note": "",
    }


def _gpu(gpu: Gpu, workload: Workload, asked: Budget) -> dict[str, Any] | None:
    """One GPU of the table; None where the reserve alone is more than it has."""
    engines, own = {}, ENGINES[workload.engine.name]
    for name, engine in ENGINES.items():
        share = engine.utilization if asked.gpu is None or asked.utilization == own.utilization else asked.utilization
        try:
            budget = Budget(gpu.usable, share, asked.reserve, asked.workspace, gpu)
        except MinitronError:
            return None
        meant = workload.engine.max_num_batched_tokens
        changed = name == own.name and meant != step_tokens(name, asked.gpu)
        tokens = meant if changed else step_tokens(name, gpu)
        engines[name] = {"available_bytes": budget.available, "step_tokens": tokens, "share": share_of(budget)}
    return {
        "name": gpu.name,
        "usable_bytes": gpu.usable,
        "engines": engines,
        "without_kernels": {name: _without_kernels(name, gpu) for name in ENGINES if _without_kernels(name, gpu)},
        "emulated": _emulated(gpu),
        "note": "The CPU shares this memory, and needs part of it." if gpu.unified else "",
    }


def _without_kernels(engine: str, gpu: Gpu) -> list[str]:
    """The formats of keys and values that the engine keeps, but not on such a GPU."""
    workload = Workload(1, engine=Engine("plain"))
    loaded = replace(workload, engine=Engine(engine)) if ENGINES[engine].files != "gguf" else None
    return [] if loaded is None else [form for form in ENGINES[engine].kv or {} if not keeps_kv(loaded, form, gpu)]


def _emulated(gpu: Gpu) -> list[str]:
    """The formats that its tensor cores do not know."""
    return [
        name
        for name, form in FORMATS.items()
        if gpu.capability is not None and form.native is not None and gpu.capability < form.native
    ]
