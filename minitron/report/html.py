"""The report as one self-contained HTML page: offline, light and dark, for screens, phones and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from minitron.escapes import html as escape
from minitron.report.bits import bits_section
from minitron.report.charts import bar_models, called, figures, line_colour, series_style
from minitron.report.judged import judged_section
from minitron.report.page import (
    Cell,
    Markup,
    badge,
    chart,
    class_of,
    footer,
    head,
    json_text,
    legend,
    section,
    table,
)
from minitron.report.planner_page import planner_section, report_data
from minitron.report.sieves import sieves_section
from minitron.report.text import (
    ORIGIN_LABELS,
    SPEED_COLUMNS,
    Document,
    budget_terms,
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
    verdict,
    warned,
    warning_text,
)
from minitron.report.training import training_section
from minitron.units import format_bytes, format_parameters

_SCRIPT: Final = Path(__file__).with_name("report.js")


def to_html(document: Document) -> str:
    """The report as one HTML file, from the document alone; plotly.js is written into it."""
    from plotly.offline import get_plotlyjs

    drawn = figures(document)
    sections = [
        _memory(document),
        _planner(document),
        _map(document),
        bits_section(document),
        _candidates(document),
        _choice(document),
        sieves_section(document),
        training_section(document),
        judged_section(document),
        _limits(document),
        _kept(document),
        _terms(document),
        _remedies(document),
        _speed(document),
        _warnings(document),
        _obtained(document),
    ]
    title = f"{document['model']['name']} on {device(document)}"
    return "\n".join(
        [
            *head(title),
            "<body>",
            _header(document, title),
            "<main>",
            *(section for section in sections if section),
            "</main>",
            footer(document["minitron"]),
            f'<script type="application/json" id="figures">{json_text(drawn)}</script>',
            *(report_data(law) if (law := document.get("law")) else []),
            f"<script>{get_plotlyjs()}</script>",
            f"<script>\n{_SCRIPT.read_text(encoding='utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _planner(document: Document) -> str:
    if not document.get("law"):
        return ""
    return planner_section(
        "Another setting",
        "The same models elsewhere, computed in this page from the laws in report.json.",
    )


def _header(document: Document, title: str) -> str:
    fits = document["parent"]["fits"]
    answer = badge("fits" if fits else "does not fit", "fits" if fits else "misses")
    return (
        f'<header>\n<p class="eyebrow">Minitron plan</p>\n<h1>{escape(title)} {answer}</h1>\n'
        f'<p class="summary">{escape(document["summary"])}</p>\n{_tiles(document)}\n</header>'
    )


def _tiles(document: Document) -> str:
    parent, best = document["parent"], chosen(document)
    tiles = [
        ("Budget", document["budget"]["available_bytes"], budget_terms(document), ""),
        ("The model needs", parent["total_bytes"], _spare(parent), "" if parent["fits"] else "bad"),
    ]
    if best is not None and not is_parent(document, best):
        share = best["parameters"] / parent["parameters"]
        tiles.append((f"Chosen, {best['label']}", best["total_bytes"], _spare(best), "good"))
        beside = f"{share:.1%} of {format_parameters(parent['parameters'])}"
        tiles.append(("Parameters kept", best["parameters"], beside, ""))
    else:
        tiles.append(("Parameters", parent["parameters"], f"{len(parent['letters'])} layers", ""))
    found = []
    for name, value, beside, kind in tiles:
        told = format_parameters(value) if name.startswith("Parameters") else format_bytes(value)
        number, _, unit = told.partition(" ")
        unit = {"B": "billion", "M": "million"}.get(unit, unit)
        found.append(
            f'<div class="tile"><dt>{escape(name)}</dt><dd><span class="figure {kind}">{escape(number)}</span> '
            f'<span class="unit">{escape(unit)}</span><br><span class="beside">{escape(beside)}</span></dd></div>'
        )
    return f'<dl class="tiles">{"".join(found)}</dl>'


def _spare(candidate: Mapping[str, Any]) -> str:
    spare = candidate["spare_bytes"]
    return f"{format_bytes(spare)} to spare" if spare >= 0 else f"{format_bytes(-spare)} too much"


def _memory(document: Document) -> str:
    models = bar_models(document)
    names = dict.fromkeys(name for model in models for name, count in model["lines_bytes"].items() if count)
    per_gpu = " On each GPU." if document["workload"]["tensor_parallel_gpus"] > 1 else ""
    return section(
        "Memory against the budget",
        f"At {serving(document)}. {verdict(document)}{per_gpu}",
        legend([(line_colour(name), "", line_label(name)) for name in names]),
        chart("memory", "Stacked memory of the model and the best candidates against the budget"),
    )


def _choice(document: Document) -> str:
    """The chosen architecture beside the model."""
    best, parent = chosen(document), document["parent"]
    if best is None or is_parent(document, best):
        return ""
    labels = document["model"]["size_labels"]
    rows: list[tuple[str, Sequence[Cell]]] = []
    for key in changes(document, best):
        before, after = parent["sizes_count"][key], best["sizes_count"].get(key)
        share = "gone" if after is None else f"{after / before:.1%}"
        rows.append(("", [labels[key], f"{before:,}", ("-" if after is None else f"{after:,}", "less"), share]))
    rows += [("", [f"{label}, by layer", "", (sizes, "words"), ""]) for label, sizes in sizes_by_layer(document, best)]
    before, after = parent["parameters"], best["parameters"]
    rows.append(("sum", ["parameters", format_parameters(before), format_parameters(after), f"{after / before:.1%}"]))
    memory: list[tuple[str, Sequence[Cell]]] = []
    for name in dict.fromkeys([*parent["lines_bytes"], *best["lines_bytes"]]):
        old, new = (model["lines_bytes"].get(name, 0) for model in (parent, best))
        if old or new:
            memory.append(
                ("", [line_label(name), format_bytes(old), format_bytes(new), f"{new / old:.1%}" if old else ""])
            )
    old, new = parent["total_bytes"], best["total_bytes"]
    memory.append(("sum", ["total", format_bytes(old), format_bytes(new), f"{new / old:.1%}"]))
    columns = ["the model", f"chosen, {best['label']}", "stays"]
    return section(
        "What is cut",
        "Only sizes that change are listed.",
        f'<div class="pair"><div>{table(["size", *columns], rows)}</div>'
        f"<div>{table(['memory', *columns], memory)}</div></div>",
    )


def _map(document: Document) -> str:
    """One tile a layer, in its kind's colour; dropped ones struck through."""
    model, best = document["model"], chosen(document)
    kept = set(range(len(model["letters"]))) if best is None else set(best["kept_layer_indices"])
    tiles = []
    for layer, letter in enumerate(model["letters"]):
        kind = model["kinds"][letter]
        gone = layer not in kept
        told = f"layer {layer}: {kind_label(model, kind)}{', dropped' if gone else ''}"
        number = f' data-layer="{layer}"' if layer % 5 == 0 else ""
        tiles.append(
            f'<li style="--swatch: var(--kind-{escape(kind)}, var(--line-other))"{number} title="{escape(told)}"'
            f"{class_of('gone' if gone else '')}>{escape(letter)}</li>"
        )
    entries = []
    for letter, kind in model["kinds"].items():
        before = model["letters"].count(letter)
        after = sum(model["letters"][layer] == letter for layer in kept)
        count = f"{before}" if before == after else f"{after} of {before} kept"
        entries.append(
            (f"var(--kind-{escape(kind)}, var(--line-other))", "", f"{letter} {kind_label(model, kind)}: {count}")
        )
    dropped = len(model["letters"]) - len(kept)
    said = (
        "No layer is dropped."
        if not dropped
        else f"{dropped} of {len(model['letters'])} layers are dropped (struck through)."
    )
    return section("Layers", said, legend(entries), f'<ol class="map">{"".join(tiles)}</ol>')


def kind_label(model: Mapping[str, Any], kind: str) -> str:
    """How a reader calls a kind of layer."""
    return str(model.get("kind_labels", {}).get(kind, kind))


def _candidates(document: Document) -> str:
    found, parent = document["candidates"], document["parent"]
    if not found:
        return ""
    labels, best = document["model"]["size_labels"], chosen(document)
    keys = [key for key in parent["sizes_count"] if any(key in changes(document, candidate) for candidate in found)]
    scored = any(candidate["score_parameters"] != candidate["parameters"] for candidate in found)
    rows: list[tuple[str, Sequence[Cell]]] = []
    for candidate in [parent, *found]:
        sizes = [candidate["sizes_count"].get(key) for key in keys]
        name = called(document, candidate["label"]) if candidate is not parent else "the model"
        mark = badge("!", "estimated", "see the warnings") if warned(document, candidate) else ""
        cells: list[Cell] = [
            Markup(f"{escape(name)} {mark}"),
            *("-" if size is None else f"{size:,}" for size in sizes),
            format_parameters(candidate["parameters"]),
            *([format_parameters(candidate["score_parameters"])] if scored else []),
            format_bytes(candidate["total_bytes"]),
            (format_bytes(candidate["spare_bytes"]), "" if candidate["fits"] else "bad"),
        ]
        rows.append(("picked" if candidate is best else "", cells))
    head = ["", *(labels[key] for key in keys), "parameters", *(["effective"] if scored else []), "memory", "to spare"]
    counts = f"{document['feasible_architectures']:,} of {document['searched_architectures']:,} architectures fit; "
    entries = [("var(--series-0)", "", "chosen"), ("var(--series-1)", "", "best list")]
    entries += [("var(--series-2)", "", "Pareto front")] if document["front"] else []
    entries.append(("var(--series-parent)", "", "the model"))
    return section(
        "Candidates",
        counts + document["ranking"] + ".",
        legend(entries),
        chart("pareto", "Memory against parameters kept, one point per architecture"),
        table(head, rows),
    )


def _limits(document: Document) -> str:
    curves, workload = document["curves"], document["workload"]
    contexts, batches = curves["context"]["series"], curves["batch"]["series"]
    labels = [series["label"] for series in contexts]
    entries = [
        (style[0], "stroke dashed" if style[1] != "solid" else "stroke", called(document, label))
        for label in labels
        if (style := series_style(document, label, labels))
    ]
    rows: list[tuple[str, Sequence[Cell]]] = [
        ("", [called(document, context["label"]), limit(context, "tokens"), limit(batch, "sequences")])
        for context, batch in zip(contexts, batches, strict=True)
    ]
    at_batch, at_context = sequences(workload["batch_sequences"]), f"{workload['context_tokens']:,} tokens"
    head = ["", f"longest context at {at_batch}, tokens", f"most sequences at {at_context}"]
    longest = document["model"]["longest_context_tokens"]
    made = "" if longest is None else f" The config gives {longest:,} tokens as the longest context of the model."
    return section(
        "Longest context and largest batch",
        f"A marker shows where a model reaches the budget.{made}",
        legend(entries),
        f'<div class="pair"><div><h3>Against context, {escape(at_batch)}</h3>'
        f"{chart('context', 'Memory against the context')}</div>"
        f"<div><h3>Against batch, {escape(at_context)}</h3>{chart('batch', 'Memory against the batch')}</div></div>",
        table(head, rows),
    )


def _kept(document: Document) -> str:
    if not document["kept_importance"]:
        return ""
    return section(
        "Importance kept per layer",
        "The share of the importance scores held by the kept indices of each pruned axis. Empty: the "
        "layer has no such axis, or is dropped.",
        chart("kept", "Share of importance kept, by axis and layer"),
    )


def _terms(document: Document) -> str:
    best = chosen(document)
    parts = []
    for which, title in (("chosen", "The chosen architecture"), ("parent", "The original model")):
        found = document["terms"][which]
        if not found or (which == "chosen" and best is not None and is_parent(document, best)):
            continue
        name = f"{title}, {best['label']}" if which == "chosen" and best is not None else title
        rows: list[tuple[str, Sequence[Cell]]] = [
            (
                "",
                [
                    term["title"],
                    format_bytes(term["bytes"]),
                    (Markup(f"{escape(term['formula'])}<small>{escape(term['note'])}</small>"), "words wrap"),
                    (Markup(f"{escape(term['filled'])}<br>= {term['bytes']:,} B"), "words wrap filled"),
                    (badge(term["origin"], term["origin"], ORIGIN_LABELS.get(term["origin"], "")), "words"),
                ],
            )
            for term in found
        ]
        total = sum(term["bytes"] for term in found)
        rows.append(("sum", ["total", format_bytes(total), "", (f"= {total:,} B", "words filled"), ""]))
        head: list[Cell] = ["", "size", ("formula", "words"), ("numbers filled in", "words"), ("origin", "words")]
        log = engine_log(document, which)
        parts += [f"<h3>{escape(name)}</h3>", table(head, rows), f"<p>{escape(log)}</p>" if log else ""]
    origins = dict.fromkeys(term["origin"] for terms in document["terms"].values() for term in terms)
    said = "; ".join(f"{origin}: {ORIGIN_LABELS.get(origin, '')}" for origin in origins)
    return section("Every term of the memory, with its formula", said[:1].upper() + said[1:] + ".", *parts, kind="long")


def _remedies(document: Document) -> str:
    rows: list[tuple[str, Sequence[Cell]]] = [
        (
            "",
            [
                r["change"],
                (r["flags"], "words filled"),
                format_bytes(r["total_bytes"]),
                format_bytes(r["spare_bytes"]),
                (r["price"], "words"),
            ],
        )
        for r in document["remedies"]
    ]
    head: list[Cell] = ["", ("options", "words"), "needs", "to spare", ("KL measured, nats", "words")]
    return section("What else would make it fit", "Without pruning.", table(head, rows)) if rows else ""


def _speed(document: Document) -> str:
    speed = document["speed"]
    if speed is None:
        return ""
    rows: list[tuple[str, Sequence[Cell]]] = [
        (
            "",
            [
                row["label"],
                f"{row['batch_sequences']:,}",
                f"{row['output_tokens_per_s']:,.4g}",
                f"{row['decode_tokens_per_s']:,.4g}",
                f"{row['prefill_tokens_per_s']:,.0f}",
                f"{row['first_token_s']:.3g}",
            ],
        )
        for row in speed["rows"]
    ]
    head: list[Cell] = list(SPEED_COLUMNS)
    return section("Speed, an estimate", speed["note"], table(head, rows))


def _warnings(document: Document) -> str:
    items = "".join(
        f"<li>{escape(warning_text(warning))}"
        + (f' <span class="source">({escape(warning["source"])})</span>' if warning["source"] else "")
        + "</li>"
        for warning in document["warnings"]
    )
    return section("Warnings", "", f'<ul class="notes">{items}</ul>') if items else ""


def _obtained(document: Document) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in how_obtained(document))
    command = f"<pre>{escape(document['command'])}</pre>" if document["command"] else ""
    serve = f"<pre>{escape(document['serve'])}</pre>" if document["serve"] else ""
    return section("How the numbers were obtained", "", f'<ul class="notes">{items}</ul>', command, serve)
