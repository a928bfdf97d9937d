"""The report of a plan: one JSON document, and the HTML page and Markdown made from it.

    document = build_report(spec, name, result, command="minitron plan ...")
    write_report(folder, document, overwrite=False)        report.html, report.json, report.md

The document obeys report.schema.json beside this file.  The name of every number ends in its unit: `total_bytes`,
`context_tokens`, `layer_indices`, `kept_share` (of 1), `sizes_count` (of what each key names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from minitron import __version__
from minitron.errors import MinitronError
from minitron.files import new_folder, read_json, sole, write_bytes, write_json, write_text
from minitron.foreign import told
from minitron.memory.budget import Budget
from minitron.memory.footprint import engine_facts
from minitron.memory.footprint_lines import FootprintLine, footprint_lines
from minitron.memory.questions import Remedy, cautions
from minitron.memory.workload import Workload
from minitron.model.axes import AXES, LAYER
from minitron.model.by_layer import write_sizes
from minitron.model.spec import DEPTH, ModelSpec
from minitron.report.bits import bits_document
from minitron.report.curves import PARENT, curves_document
from minitron.report.planner import law_document
from minitron.report.text import model_name, summary
from minitron.search.candidate import Candidate
from minitron.search.kept_importance import kept_importance
from minitron.search.part_costs import part_costs
from minitron.search.rivals import by_loss, by_score, formats_cautions
from minitron.search.search import SearchResult

if TYPE_CHECKING:
    from minitron.cut.scores import Scores

VERSION: Final = 1
"""The version of the document; it grows whenever a reader of the old one would misread the new one."""

SCHEMA: Final = Path(__file__).with_name("report.schema.json")


def build_report(
    spec: ModelSpec,
    model: str,
    result: SearchResult,
    *,
    terms: Sequence[FootprintLine] | None = None,
    remedies: Sequence[Remedy] = (),
    scores: Scores | None = None,
    speed: Mapping[str, Any] | None = None,
    command: str = "",
    serve: str = "",
    sieves: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document.  `model` is a name or path; of a path its last part is shown.

    `terms` are those of the model as it is (minitron.memory.footprint_lines); those of the chosen candidate are
    computed here. `remedies` are what else would make it fit (minitron.memory.questions), left out where it does.
    `speed` obeys `$defs/speed` of the schema; `serve` is the command that serves what fits, empty where no engine was
    named. `sieves` says how candidates were measured (minitron.report.sieves), None where none was."""
    workload, budget = result.workload, result.budget
    labels = [PARENT, *(f"#{place}" for place in range(1, len(result.candidates) + 1))]
    shown = _described(spec, [result.parent, *result.candidates, *result.front])
    candidates = [
        _candidate(label, candidate, shown, budget.available)
        for label, candidate in zip(labels, [result.parent, *result.candidates], strict=True)
    ]
    chosen = result.best if result.candidates else None
    left = spec if chosen is None else chosen.left(spec)
    document: dict[str, Any] = {
        "version": VERSION,
        "minitron": __version__,
        "command": command,
        "serve": serve,
        "summary": "",
        "model": _model(spec, model),
        "gpu": _gpu(result),
        "workload": _workload(workload),
        "budget": _budget(budget),
        "parent": candidates[0],
        "candidates": candidates[1:],
        "chosen_index": result.chosen if result.candidates else None,
        "front": _front(result, shown),
        "why": _why(result, sieves),
        "bits": _bits(left, result),
        "costs": [one.to_json() for one in part_costs(spec, result)] if result.candidates else [],
        **_searched(result),
        "terms": {
            "parent": _terms(footprint_lines(spec, workload, budget) if terms is None else terms),
            "chosen": _terms(footprint_lines(left, result.served(left), budget)) if chosen else [],
        },
        "engine_log": _engine_log(spec, result, chosen),
        "curves": curves_document(spec, result, labels),
        "law": law_document(spec, result, model_name(model)),
        "remedies": [remedy.to_json() for remedy in remedies],
        "kept_importance": [] if scores is None or chosen is None else _kept(spec, scores, chosen),
        "sieves": None if sieves is None else dict(sieves),
        "speed": None if speed is None else dict(speed),
        "warnings": _warnings(spec, result, labels),
    }
    return document | {"summary": summary(document)}


def report_files(document: Mapping[str, Any]) -> dict[str, str]:
    """File name -> text, of the page and the Markdown that are made of a document."""
    from minitron.report.html import to_html
    from minitron.report.markdown import to_markdown

    return {"report.html": to_html(document), "report.md": to_markdown(document)}


def write_report(
    folder: Path, document: Mapping[str, Any], *, overwrite: bool, beside: Mapping[str, Any] | None = None
) -> None:
    """Write report.html, report.json and report.md as one folder, in one step, with `beside` as more files by name,
    JSON or bytes.

    Raises MinitronError where the folder exists and `overwrite` is not given."""
    texts = report_files(document)
    with new_folder(folder, overwrite=overwrite) as partial:
        for name, value in {"report.json": document, **(beside or {})}.items():
            if isinstance(value, bytes):
                write_bytes(partial / name, value)
            else:
                write_json(partial / name, value)
        for name, text in texts.items():
            write_text(partial / name, text)


def require_report(folder: Path) -> dict[str, Any]:
    """The document of a report folder; raises MinitronError where it holds none, or one that no page can be made of."""
    path = folder / "report.json"
    document = read_json(path)
    if not isinstance(document, dict) or "candidates" not in document:
        raise MinitronError(f"{folder} holds no report; give a folder written by `minitron plan -o`.")
    # The pages read all of it: what they fall over is what is damaged, and is told before training and not after it.
    with told(f"{path} is damaged", "plan again with `minitron plan -o`"):
        report_files(document)
        json.dumps(document, allow_nan=False)
    return document


def add_part(folder: Path, name: Literal["training", "judged"], part: Mapping[str, Any]) -> None:
    """Write the learning curve or a judge's verdict into the report that is in `folder`, in place of one before."""
    with sole(folder):
        document = require_report(folder) | {name: dict(part)}
        for file, text in report_files(document).items():
            write_text(folder / file, text)
        write_json(folder / "report.json", document)


def read_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document."""
    schema: dict[str, Any] = read_json(SCHEMA)
    return schema


def _model(spec: ModelSpec, model: str) -> dict[str, Any]:
    counts = spec.parameters()
    longest = spec.value("max_position_embeddings")
    return {
        "name": model_name(model),
        "family": spec.family.name,
        "config_sha256": spec.fingerprint,
        "letters": spec.letters,
        "kinds": {letter: spec.family.letters[letter] for letter in dict.fromkeys(spec.letters)},
        "sizes_count": spec.named_sizes,
        "kind_labels": {
            kind: spec.family.kind_labels.get(kind, kind) for kind in dict.fromkeys(map(spec.base, spec.layers))
        },
        "size_labels": {key: spec.axis(axes[0]).label for key, axes in spec.keys.items()} | {DEPTH: AXES[LAYER].label},
        "parameters": int(counts.total),
        "active_parameters": int(counts.active),
        "mtp_parameters": int(counts.mtp),
        "longest_context_tokens": longest if isinstance(longest, int) else None,
    }


def _gpu(result: SearchResult) -> dict[str, Any] | None:
    gpu = result.budget.gpu
    if gpu is None:
        return None
    return {
        "name": gpu.name,
        "usable_bytes": gpu.usable,
        "bandwidth_GB_per_s": gpu.bandwidth,
        "bf16_TFLOP_per_s": gpu.bf16,
        "fp8_TFLOP_per_s": gpu.fp8,
        "nvfp4_TFLOP_per_s": gpu.nvfp4,
        "compute_capability": None if gpu.capability is None else ".".join(map(str, gpu.capability)),
        "unified": gpu.unified,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "usable_bytes": budget.usable,
        "utilization_share": budget.utilization,
        "reserve_bytes": budget.reserve,
        "available_bytes": budget.available,
    }


def _workload(workload: Workload) -> dict[str, Any]:
    engine = workload.engine
    return {
        "context_tokens": workload.context,
        "batch_sequences": workload.batch,
        "weights": workload.weights,
        "kv": workload.kv,
        "ssm_state": workload.ssm_state,
        "conv_state": workload.conv_state,
        "keep": dict(workload.keep),
        "tensor_parallel_gpus": workload.tensor_parallel,
        "speculative_tokens": workload.speculative_tokens,
        "lora_rank_count": workload.lora_rank,
        "loras_count": workload.loras,
        "vision_encoder_bytes": workload.vision_encoder,
        "engine": {
            "name": engine.name,
            "prefix_caching": engine.prefix_caching,
            "cuda_graphs": engine.cuda_graphs,
            "max_num_sequences": workload.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "block_size_tokens": engine.block_size,
        },
    }


def _described(spec: ModelSpec, candidates: Sequence[Candidate]) -> list[str]:
    """The sizes by which an architecture is described: those in which candidates differ, or the widest known."""
    keys = ["num_hidden_layers", *spec.keys]
    varied = [key for key in keys if len({candidate.sizes.get(key) for candidate in candidates}) > 1]
    return varied or [key for key in ("num_hidden_layers", "hidden_size") if key in spec.named_sizes]


def _candidate(label: str, candidate: Candidate, shown: Sequence[str], available: int) -> dict[str, Any]:
    lines = candidate.footprint.to_json()
    total = lines.pop("total")
    return {
        "label": label,
        "shown_sizes": [key for key in shown if key in candidate.sizes],
        "sizes_count": dict(candidate.sizes),
        "letters": candidate.letters,
        "kept_layer_indices": list(candidate.kept),
        "parameters": candidate.parameters,
        "score_parameters": float(candidate.score),
        "lines_bytes": lines,
        "total_bytes": total,
        "spare_bytes": available - total,
        "fits": candidate.fits,
        "formats": {} if candidate.formats is None else candidate.formats.told,
        "by_layer_count": write_sizes(candidate.by_layer),
    }


def _searched(result: SearchResult) -> dict[str, Any]:
    """How many architectures there are, how they are ranked, and what is limited beside memory."""
    return {
        "searched_architectures": result.searched,
        "feasible_architectures": result.feasible,
        "ranking": result.ranking,
        "limits": result.limits_held() if result.candidates else [],
    }


def _front(result: SearchResult, shown: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "shown_sizes": [key for key in shown if key in candidate.sizes],
            "sizes_count": dict(candidate.sizes),
            "parameters": candidate.parameters,
            "score_parameters": float(candidate.score),
            "total_bytes": int(candidate.footprint.total),
            "fits": candidate.fits,
        }
        for candidate in result.front
    ]


def _terms(terms: Sequence[FootprintLine]) -> list[dict[str, Any]]:
    return [term.to_json() for term in terms]


def _engine_log(spec: ModelSpec, result: SearchResult, chosen: Candidate | None) -> dict[str, Any]:
    """What the engine's log should say of the model, and of the chosen one."""
    parent = engine_facts(spec, result.workload, result.budget)
    left = spec if chosen is None else chosen.left(spec)
    best = () if chosen is None else engine_facts(left, result.served(left), result.budget)
    return {
        "labels": {fact.name: fact.label for fact in parent},
        "parent": {fact.name: fact.value for fact in parent},
        "chosen": {fact.name: fact.value for fact in best},
    }


def _why(result: SearchResult, sieves: Mapping[str, Any] | None) -> str:
    """Why bits and sizes were chosen together; empty where formats were not searched."""
    if not result.candidates or result.best.formats is None:
        return ""
    if sieves is None:
        return by_score(result)
    best, formats = result.best, result.best.formats.of
    measured = {
        (
            tuple(sorted(one["sizes_count"].items())),
            tuple(one["kept_layer_indices"]),
            tuple(one["formats"].items()),
        ): one
        for one in sieves["verdicts"]
    }
    verdict = measured.get((tuple(sorted(best.sizes.items())), best.kept, tuple(formats.items())))
    if verdict is None or best.by_layer:
        # Sizes by layer were measured beside the best with one size for all layers.
        uniform = min(one["measured_loss"] for one in sieves["verdicts"])
        return f"{by_loss(uniform, sieves['rivals_nats'])} Sizes chosen layer by layer then lost less."
    return by_loss(verdict["measured_loss"], sieves["rivals_nats"])


def _bits(left: ModelSpec, result: SearchResult) -> list[dict[str, Any]]:
    formats = result.best.formats if result.candidates else None
    return [] if formats is None else bits_document(left, formats.of, result.best.kept, result.workload.weights)


def _kept(spec: ModelSpec, scores: Scores, chosen: Candidate) -> list[dict[str, Any]]:
    """One row an axis: the share of its importance that each layer keeps."""
    shares, left = kept_importance(spec, scores, chosen.sizes, chosen.kept, chosen.by_layer), spec.resized(chosen.sizes)
    rows = []
    for axis in dict.fromkeys(axis for axis, _ in shares):
        layers = {layer: share for (name, layer), share in shares.items() if name == axis}
        kept, whole = left.sizes[axis], spec.sizes[axis]
        rows.append(
            {
                "axis": axis,
                "label": spec.axis(axis).label,
                "kept_count": kept,
                "whole_count": whole,
                "kept_share": kept / whole,
                # An axis that all layers share has one share and names no layer.
                "layer_indices": [layer for layer in layers if layer is not None],
                "importance_shares": list(layers.values()),
            }
        )
    return rows


def _warnings(spec: ModelSpec, result: SearchResult, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What is to be known of the device and the workload, then the dead zones with the candidates that lie in them."""
    texts = [*cautions(spec, result.workload, result.budget.gpu), *formats_cautions(spec, result)]
    found = [{"text": text, "source": "", "labels": []} for text in texts]
    zones: dict[tuple[str, str], list[str]] = {}
    for label, candidate in zip(labels[1:], result.candidates, strict=True):
        for zone in candidate.warnings:
            zones.setdefault((zone.sentence, zone.source), []).append(label)
    return [*found, *({"text": text, "source": source, "labels": names} for (text, source), names in zones.items())]
