"""JSON Schemas of what every command prints with --json: `minitron schema NAME`.

A schema names what is always there and of which type it is; more may come with later versions.
"""

import json
from importlib.resources import files
from typing import Any, Final

Schema = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
TRUTH: Final[Schema] = {"type": "boolean"}
ANYTHING: Final[Schema] = {}
OBJECT: Final[Schema] = {"type": "object"}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema) -> Schema:
    """A list of them."""
    return {"type": "array", "items": schema}


def named(schema: Schema) -> Schema:
    """Name -> one of them."""
    return {"type": "object", "additionalProperties": schema}


def record(**keys: Schema) -> Schema:
    """An object with these keys, and maybe more."""
    return {"type": "object", "properties": keys, "required": list(keys)}


_DRY_RUN: Final = record(
    dry_run=record(
        reads=named(COUNT),
        writes=named(COUNT),
        memory=named(COUNT),
        device=TEXT,
        available_memory_bytes=COUNT,
        available_disk_bytes=COUNT,
        seconds=named(NUMBER),
        measured=record(flops_per_s=NUMBER, read_bytes_per_s=NUMBER),
        short=listed(TEXT),
        notes=listed(TEXT),
    )
)


def run(results: Schema, *, dry: bool = False) -> Schema:
    """The document of a command that ran (cli.show.run_document)."""
    outcome = {"anyOf": [results, _DRY_RUN]} if dry else results
    found = record(output=maybe(TEXT), inputs=OBJECT, settings=OBJECT, results=outcome, seconds=NUMBER)
    return found | {"additionalProperties": False}


_MEASURED: Final = record(
    parameters=COUNT,
    weight_bytes=COUNT,
    perplexity=NUMBER,
    kl_to_teacher=maybe(NUMBER),
    top1_agreement=maybe(NUMBER),
    prefill_tokens_per_s=maybe(NUMBER),
    decode_tokens_per_s=maybe(NUMBER),
    peak_memory=maybe(COUNT),
    caches=listed(OBJECT),
    tasks=named(OBJECT),
    promised=maybe(OBJECT),
)

_SCORED: Final = record(
    samples=COUNT,
    sequence_length=COUNT,
    tokens=COUNT,
    axes=named(record(places=COUNT, size=COUNT, best_quarter=maybe(NUMBER), best_half=maybe(NUMBER), unused=COUNT)),
    layers=maybe(listed(record(layer=COUNT, kind=TEXT, score=NUMBER))),
    costs=named(record(seconds=NUMBER, share=NUMBER)),
)

_CUT: Final = record(
    parameters=COUNT,
    weight_bytes=COUNT,
    source_parameters=COUNT,
    source_weight_bytes=COUNT,
    extras=named(ANYTHING),
    sizes=named(COUNT),
    layers=TEXT,
    kept_layers=listed(COUNT),
)

_QUANTISED: Final = record(
    parameters=COUNT,
    weight_bytes=COUNT,
    planned_bytes=COUNT,
    source_weight_bytes=COUNT,
    formats=named(COUNT),
    left=named(TEXT),
)

_DISTILLED: Final = record(
    teacher_precision=TEXT,
    steps=COUNT,
    tokens=COUNT,
    seconds=NUMBER,
    tokens_per_s=NUMBER,
    kl_before=NUMBER,
    kl_after=NUMBER,
    perplexity_before=NUMBER,
    perplexity_after=NUMBER,
    perplexity_teacher=NUMBER,
    skipped_steps=COUNT,
    selected_step=COUNT,
    drift=maybe(OBJECT),
    curve=listed(record(step=COUNT, tokens=COUNT, kl=NUMBER, perplexity=NUMBER, top1_agreement=NUMBER)),
    stages=listed(OBJECT),
)

_STEPS: Final = named(record(seconds=NUMBER, results=OBJECT))

_COMPRESSED: Final = record(steps=_STEPS, models=named(_MEASURED), serve=TEXT, cuts=named(record(steps=_STEPS)))

_SHARE: Final = record(count=COUNT, value=NUMBER, interval=listed(NUMBER))

_JUDGED: Final = record(verdict=record(contests=COUNT, wins=_SHARE, ties=_SHARE, losses=_SHARE, broken=_SHARE))

_PART: Final = record(value=NUMBER, interval=listed(NUMBER))

_TRIED: Final = maybe(record(pairs=COUNT, accuracy=_PART, right_in_both_orders=_PART, broken=NUMBER, tokens=COUNT))

_JUDGE_TRAINED: Final = record(
    judge=TEXT,
    turns=TEXT,
    pairs=COUNT,
    steps=COUNT,
    generated_tokens=COUNT,
    stopped=TRUTH,
    before=_TRIED,
    after=_TRIED,
    curve=listed(OBJECT),
)

_EXPORTED: Final = {
    "anyOf": [
        record(tensors=COUNT, parameters=COUNT, weight_bytes=COUNT, file_bytes=COUNT, types=named(COUNT)),
        record(weight_bytes=COUNT),
    ]
}

_INSPECTED: Final = record(
    model_type=TEXT,
    family=TEXT,
    layers=TEXT,
    sizes=named(COUNT),
    differing=listed(record(layers=listed(COUNT), kind=TEXT, config=OBJECT)),
    parameters=record(total=COUNT, active=COUNT, mtp=COUNT, by_component=named(COUNT)),
    extras=named(COUNT),
    weight_bytes=COUNT,
    quantisation=maybe(TEXT),
)

_COMPARED: Final = record(
    model=TEXT,
    gpu=TEXT,
    parameters=COUNT,
    weights_bytes=COUNT,
    cache_bytes=COUNT,
    total_bytes=COUNT,
    available_bytes=COUNT,
    fits=TRUTH,
    longest_context_tokens=maybe(COUNT),
    largest_batch_sequences=maybe(COUNT),
    estimated_output_tokens_per_s=maybe(NUMBER),
    cautions=listed(TEXT),
)

_SOLVED: Final = record(
    question=TEXT,
    value=ANYTHING,
    total_bytes=COUNT,
    available_bytes=COUNT,
    spare_bytes={"type": "integer"},
    terms=listed(OBJECT),
    engine_log=OBJECT,
    cautions=listed(TEXT),
)

_GPU: Final = record(
    name=TEXT,
    usable_GiB=NUMBER,
    bandwidth_GB_per_s=maybe(NUMBER),
    bf16_TFLOP_per_s=maybe(NUMBER),
    fp8_TFLOP_per_s=maybe(NUMBER),
    nvfp4_TFLOP_per_s=maybe(NUMBER),
    compute_capability=maybe(TEXT),
    unified_memory=TRUTH,
    source=TEXT,
)

SCHEMAS: Final[dict[str, Schema]] = {
    "inspect": {"anyOf": [_INSPECTED, record(types=named(TEXT), unsupported=named(TEXT))]},
    "compare": record(settings=OBJECT, rows=listed(_COMPARED)),
    "gpus": record(gpus=listed(_GPU)),
    "solve": _SOLVED,
    "score": run(_SCORED, dry=True),
    "prune": run(_CUT, dry=True),
    "quantize": run(_QUANTISED, dry=True),
    "distill": run(_DISTILLED, dry=True),
    "eval": run(named(_MEASURED)),
    "judge": run({"anyOf": [_JUDGED, record(judge=TEXT, layout=TEXT)]}),
    "judge-train": run(_JUDGE_TRAINED),
    "export": run(_EXPORTED),
    "compress": run({"anyOf": [_COMPRESSED, record(members=named(_COMPRESSED))]}, dry=True),
    "demo": run(_COMPRESSED),
}
"""Command -> the schema of its --json; `solve` is that of `plan --solve`, and `plan` is report.schema.json."""

PLAN: Final = "plan"


def names() -> list[str]:
    """What `minitron schema` takes."""
    return [PLAN, *SCHEMAS]


def schema(name: str) -> Schema:
    """The schema of a command's --json; raises KeyError for no such name."""
    if name == PLAN:
        found: Schema = json.loads((files("minitron.report") / "report.schema.json").read_text(encoding="utf-8"))
        return found
    return {"$schema": _DIALECT, "title": f"minitron {name} --json", **SCHEMAS[name]}
