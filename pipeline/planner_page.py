"""The planner as a page: the bundled models, those that are given, and every GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.progress import Progress, silent
from pipeline.planning import Planning
from pipeline.serving import model_names

FIRST: Final = "Nemotron-Nano-9B-v2"
"""The model that a page without one of the reader's shows at first."""


def planner_page(
    models: Sequence[Path],
    planning: Planning,
    *,
    bundled: bool = True,
    progress: Progress = silent,
) -> str:
    """The page as HTML, the given models first, the first of them shown; context, batch and engine are those of
    `planning`, where it says them.  Reads no weights.

    `bundled`: with the models that Minitron brings.  Raises MinitronError for a model that cannot be counted, and where
    there is none."""
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import GPUS
    from minitron.memory.workload import workload_of
    from minitron.model.spec import spec_of
    from minitron.model.stored import read_stored_spec
    from minitron.report.planner import (
        CONTEXT,
        Asked,
        bundled_models,
        page_entry,
        planner_document,
    )
    from minitron.report.planner_page import to_planner_page
    from minitron.report.reading import reading_document

    specs = dict(zip(model_names(models), map(read_stored_spec, models), strict=True))
    if bundled:
        known = bundled_models()
        specs |= {name: spec_of(config) for name, config in known.items() if name not in specs}
    if not specs:
        raise MinitronError("the page would have no model; give one.")
    # Every model is counted twice: itself, and as one of its type in any sizes.
    with progress("Counting", 2 * len(specs), "models") as advance:

        def configs() -> Iterator[Mapping[str, Any]]:
            for name, spec in specs.items():
                yield spec.config
                advance(1, name)

        entries = []
        for name, spec in specs.items():
            entries.append(page_entry(name, spec))
            advance(1, name)
        reading = reading_document(configs())
    # Nothing given: the hybrid of the worked example in docs/planning.md.
    place = 0 if models or FIRST not in specs else list(specs).index(FIRST)
    gpu = planning.device or next(iter(GPUS.values()))
    first = list(specs.values())[place]
    workload = workload_of(first, planning.context or CONTEXT, planning.batch, engine=planning.engine_on(gpu))
    budget = Budget(gpu.usable, planning.budget_of(gpu).utilization, planning.reserve or 0, None, gpu)
    return to_planner_page(planner_document(entries, Asked(workload, budget), place), reading)
