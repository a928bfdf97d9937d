"""The report as Markdown, for example for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minitron.escapes import Markdown, code, markdown, one_line, visible
from minitron.report import judged as report_judged
from minitron.report import training as report_training
from minitron.report.bits import cost_rows
from minitron.report.sieves import COLUMNS, ROWS, cells, in_order, is_built, sentences
from minitron.report.text import (
    ORIGIN_LABELS,
    SPEED_COLUMNS,
    Document,
    budget_sum,
    changes,
    chosen,
    device,
    engine_log,
    how_obtained,
    is_parent,
    limit,
    line_label,
    sequences,
    serving,
    sizes_by_layer,
    warned,
    warning_text,
)
from minitron.search.part_costs import COST_COLUMNS
from minitron.units import format_bytes, format_parameters


def to_markdown(document: Document) -> str:
    """The report as GitHub-flavoured Markdown, from the document alone."""
    sections = [
        [
            f"## {markdown(document['model']['name'])} on {markdown(device(document))}",
            "",
            markdown(document["summary"]),
            *(["", markdown(document["why"])] if document["why"] else []),
        ],
        _memory(document),
        _candidates(document),
        _layers(document),
        _costs(document),
        _sieves(document),
        _training(document),
        _judged(document),
        _limits(document),
        _terms(document),
        _remedies(document),
        _warnings(document),
        _speed(document),
        ["### How the numbers were obtained", "", *(f"- {markdown(line)}" for line in how_obtained(document))],
        _command(document),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _costs(document: Document) -> list[str]:
    rows = cost_rows(document)
    return ["### What each part costs", "", *_table(COST_COLUMNS, rows, 2)] if rows else []


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A table whose first `words` columns are set to the left, the others to the right; a cell is text, or Markdown."""
    rule = [":--" if place < words else "--:" for place in range(len(columns))]
    return [f"| {' | '.join(map(markdown, cells))} |" for cells in (columns, map(Markdown, rule), *rows)]


def _bold(text: str) -> Markdown:
    return Markdown(f"**{markdown(text)}**")


def _memory(document: Document) -> list[str]:
    parent, best = document["parent"], chosen(document)
    models = [parent] if best is None or is_parent(document, best) else [parent, best]
    names = list(dict.fromkeys(name for model in models for name, count in model["lines_bytes"].items() if count))
    rows = [
        [line_label(name), *(format_bytes(model["lines_bytes"].get(name, 0)) for model in models)] for name in names
    ]
    rows.append([_bold("total"), *(_bold(format_bytes(model["total_bytes"])) for model in models)])
    rows.append(["budget", *(format_bytes(document["budget"]["available_bytes"]) for _ in models)])
    rows.append(["to spare", *(format_bytes(model["spare_bytes"]) for model in models)])
    columns = ["", "the model", *(f"chosen ({model['label']})" for model in models[1:])]
    head = f"### Memory at {markdown(serving(document))}, budget {markdown(budget_sum(document))}"
    return [head, "", *_table(columns, rows)]


def _candidates(document: Document) -> list[str]:
    found, model = document["candidates"], document["model"]
    if not found:
        return []
    keys = [key for key in model["sizes_count"] if any(key in changes(document, candidate) for candidate in found)]

    def row(candidate: Mapping[str, Any], label: str) -> list[str]:
        sizes = [candidate["sizes_count"].get(key) for key in keys]
        scored = format_parameters(candidate["score_parameters"])
        return [
            label,
            *("-" if size is None else f"{size:,}" for size in sizes),
            format_parameters(candidate["parameters"]),
            *([scored] if _ranked_otherwise(document) else []),
            format_bytes(candidate["total_bytes"]),
            format_bytes(candidate["spare_bytes"]),
        ]

    labels = [candidate["label"] + (" (!)" if warned(document, candidate) else "") for candidate in found]
    labels[document["chosen_index"]] = _bold(f"{labels[document['chosen_index']]} chosen")
    columns = ["", *(model["size_labels"][key] for key in keys), "parameters"]
    columns += [*(["effective"] if _ranked_otherwise(document) else []), "memory", "to spare"]
    rows = [row(document["parent"], "the model"), *(row(c, label) for c, label in zip(found, labels, strict=True))]
    told = f"{document['feasible_architectures']:,} of {document['searched_architectures']:,} architectures fit; "
    return ["### Candidates", "", told + markdown(document["ranking"]) + ":", "", *_table(columns, rows)]


def _ranked_otherwise(document: Document) -> bool:
    """Whether the score is something else than the parameters."""
    return any(candidate["score_parameters"] != candidate["parameters"] for candidate in document["candidates"])


def _layers(document: Document) -> list[str]:
    best = chosen(document)
    if best is None or is_parent(document, best):
        return []
    letters, kept = document["model"]["letters"], set(best["kept_layer_indices"])
    dropped = [f"{layer} ({letters[layer]})" for layer in range(len(letters)) if layer not in kept]
    marks = "".join(letter if layer in kept else "." for layer, letter in enumerate(letters))
    legend = ", ".join(f"{letter} {kind}" for letter, kind in document["model"]["kinds"].items())
    gone = f"Dropped layers, counted from 0: {', '.join(dropped)}." if dropped else "No layer is dropped."
    told = markdown(f"{legend}. {gone}")
    own = [f"- {markdown(f'{label}: {sizes}.')}" for label, sizes in sizes_by_layer(document, best)]
    strip = ["```", visible(f"model   {letters}"), visible(f"chosen  {marks}"), "```"]
    return ["### Layers", "", *strip, "", told, *(["", "Sizes by layer:", "", *own] if own else [])]


def _sieves(document: Document) -> list[str]:
    if document["sieves"] is None:
        return []
    verdicts = in_order(document)
    rows = [list(cells(document, verdict)) for verdict in verdicts[:ROWS]]
    for row, verdict in zip(rows, verdicts, strict=False):
        if is_built(document, verdict):
            row[0] = _bold(row[0])
    left = len(verdicts) - len(rows)
    more = ["", f"{left} more were measured; see report.html and report.json."] if left else []
    told = [f"- {markdown(line)}" for line in sentences(document)]
    return ["### How it was chosen", "", *told, "", *_table(COLUMNS, rows), *more]


def _training(document: Document) -> list[str]:
    if document.get("training") is None:
        return []
    found = report_training.rows(document)
    place = document["training"]["selected_index"]
    found[place][0] = _bold(found[place][0])
    head = report_training.columns(document)
    said = markdown(report_training.sentence(document))
    return ["### Distillation", "", said, "", *_table(head, found, 0)]


def _judged(document: Document) -> list[str]:
    judged = document.get("judged")
    if judged is None:
        return []
    table = _table(report_judged.COLUMNS, report_judged.rows(judged))
    return ["### The answers, judged", "", markdown(" ".join(report_judged.sentences(judged))), "", *table]


def _limits(document: Document) -> list[str]:
    curves, workload = document["curves"], document["workload"]
    contexts, batches = curves["context"]["series"], curves["batch"]["series"]
    columns = [
        "",
        f"longest context at {sequences(workload['batch_sequences'])}, tokens",
        f"most sequences at {workload['context_tokens']:,} tokens",
    ]
    rows = [
        [
            "the model" if context["label"] == "model" else context["label"],
            limit(context, "tokens"),
            limit(batch, "sequences"),
        ]
        for context, batch in zip(contexts, batches, strict=True)
    ]
    return ["### Longest context and largest batch", "", *_table(columns, rows)]


def _terms(document: Document) -> list[str]:
    best = chosen(document)
    which = "parent" if best is None or is_parent(document, best) else "chosen"
    found = document["terms"][which]
    rows = [[term["title"], f"{term['bytes']:,}", term["formula"], term["filled"], term["origin"]] for term in found]
    what = "the model" if which == "parent" or best is None else f"the chosen architecture, {best['label']}"
    columns = ["", "bytes", "formula", "filled in", "origin"]
    origins = dict.fromkeys(term["origin"] for term in found)
    legend = "; ".join(f"{origin}: {ORIGIN_LABELS.get(origin, '')}" for origin in origins)
    log = engine_log(document, which)
    return (
        [
            f"### How each term of {markdown(what)} is computed",
            "",
            *_table(columns, rows, 5),
            "",
            f"{markdown(legend)}.",
            *(["", markdown(log)] if log else []),
        ]
        if rows
        else []
    )


def _remedies(document: Document) -> list[str]:
    rows = [
        [
            r["change"],
            code(r["flags"], cell=True) if r["flags"] else "",
            format_bytes(r["total_bytes"]),
            format_bytes(r["spare_bytes"]),
            r["price"],
        ]
        for r in document["remedies"]
    ]
    head = ["", "options", "needs", "to spare", "KL measured, nats"]
    return ["### What else would make it fit", "", *_table(head, rows, 2)] if rows else []


def _warnings(document: Document) -> list[str]:
    told = [
        f"- {markdown(warning_text(warning))}" + (f" ({markdown(warning['source'])})" if warning["source"] else "")
        for warning in document["warnings"]
    ]
    return ["### Warnings", "", *told] if told else []


def _speed(document: Document) -> list[str]:
    speed = document["speed"]
    if speed is None:
        return []
    rows = [
        [
            row["label"],
            f"{row['batch_sequences']:,}",
            f"{row['output_tokens_per_s']:,.4g}",
            f"{row['decode_tokens_per_s']:,.4g}",
            f"{row['prefill_tokens_per_s']:,.0f}",
            f"{row['first_token_s']:.3g}",
        ]
        for row in speed["rows"]
    ]
    columns = list(SPEED_COLUMNS)
    return ["### Speed, an estimate", "", markdown(speed["note"]), "", *_table(columns, rows)]


def _command(document: Document) -> list[str]:
    # On one line, so that nothing in it ends the code.
    typed = [one_line(document[name]) for name in ("command", "serve") if document[name]]
    made = f"Made by Minitron {markdown(document['minitron'])}"
    return [made + ":", "", "~~~~sh", *typed, "~~~~"] if typed else [made + "."]
