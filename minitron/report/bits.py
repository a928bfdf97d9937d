"""Bits by part and sizes by layer: what each layer that stays, embedding and output layer hold, in which format."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

from minitron.escapes import html as escape
from minitron.model.dims import numel
from minitron.model.spec import ModelSpec
from minitron.report.page import legend, section, table
from minitron.report.text import Document
from minitron.search.offered_formats import EMBEDDING, HEAD
from minitron.search.part_costs import COST_COLUMNS, PartCost
from minitron.units import format_parameters

COLOURS: Final = 8
"""Of formats in report.css; no checkpoint has more of them."""

_LETTERS: Final = {EMBEDDING: "e", HEAD: "h"}
"""Part outside layers -> what stands under its strip."""

_HEIGHT: Final = 120
"""Pixels of the layer that holds the most."""


def bits_document(
    left: ModelSpec, formats: Mapping[str, str], kept: tuple[int, ...], other: str
) -> list[dict[str, Any]]:
    """What `bits` of the report's document holds: one entry a layer of the chosen candidate `left`, with the numbers of
    its linears by part, and before and behind them one, without a layer's index, of an embedding and an output layer
    whose formats were chosen.  `formats` is part -> format, `other` that of parts which are not in it."""
    found: list[dict[str, Any]] = []
    outside = {part: _outside(left, part, formats[part]) for part in _LETTERS if part in formats}
    for layer, kind in zip(kept, left.layers, strict=True):
        sizes, numbers = left.at(kind, left.sizes), dict[str, int]()
        for rule in left.rules[kind]:
            if rule.is_projection:
                experts = left.routed(kind)[0] if rule.per_expert else 1
                count = experts * prod(int(numel(dim, sizes)) for dim in rule.matrix)
                numbers[rule.component] = numbers.get(rule.component, 0) + count
        parts = [
            {"part": part, "form": formats.get(part, other), "parameters": count} for part, count in numbers.items()
        ]
        found.append({"layer_index": layer, "letter": left.letters[len(found)], "parts": parts})
    return [*_known(outside, EMBEDDING), *found, *_known(outside, HEAD)]


def _outside(left: ModelSpec, part: str, form: str) -> dict[str, Any]:
    rules = [rule for rule in left.rules["model"] if rule.component == part and len(rule.matrix) == 2]
    count = sum(prod(int(numel(dim, left.sizes)) for dim in rule.matrix) for rule in rules)
    return {
        "layer_index": None,
        "letter": _LETTERS[part],
        "parts": [{"part": part, "form": form, "parameters": count}],
    }


def _known(outside: Mapping[str, dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [outside[part]] if part in outside else []


def bits_section(document: Document) -> str:
    """HTML: a strip a layer, as high as it holds numbers, in the colours of their formats, and the same by part as a
    table; empty where formats were not searched."""
    layers = document["bits"]
    if not layers:
        return ""
    forms = list(dict.fromkeys(part["form"] for layer in layers for part in layer["parts"]))
    colours = {form: f"var(--format-{place % COLOURS})" for place, form in enumerate(forms)}
    most = max(sum(part["parameters"] for part in layer["parts"]) for layer in layers) or 1
    strips = []
    for layer in layers:
        told = ", ".join(
            f"{part['part']} {format_parameters(part['parameters'])} in {part['form']}" for part in layer["parts"]
        )
        bars = "".join(
            f'<span style="height: {max(1, round(_HEIGHT * part["parameters"] / most))}px; '
            f'background: {colours[part["form"]]}"></span>'
            for part in layer["parts"]
        )
        place = "outside layers" if layer["layer_index"] is None else f"layer {layer['layer_index']}"
        name = escape(f"{place}: {told}")
        # What the colours say is read out too; the letter stands for the eye alone.
        strips.append(
            f'<li title="{name}">{bars}<b aria-hidden="true">{escape(layer["letter"])}</b>'
            f'<span class="unseen">{name}</span></li>'
        )
    entries = [(colour, "", form) for form, colour in colours.items()]
    said = f"{document['why']} A strip is a layer, or embedding (e) or output layer (h), as high as its "
    said += "linears hold numbers."
    # Without markers a list is none to some screen readers unless it says so.
    drawn = f'<ol class="bits" role="list">{"".join(strips)}</ol>'
    costs = table(COST_COLUMNS, [("", row) for row in cost_rows(document)])
    return section("Bits by part", said, legend(entries), drawn, costs)


def cost_rows(document: Document) -> list[list[str]]:
    """The table of what each part costs; empty where formats were not searched."""
    return [PartCost(**one).cells for one in document["costs"]]
