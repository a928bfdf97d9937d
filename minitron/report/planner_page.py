"""The planner in a page: its controls in the report, and the page of many models of `minitron plan --page`."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minitron import __version__
from minitron.escapes import html as escape
from minitron.report.page import footer, head, json_text, section

_FOLDER: Final = Path(__file__).parent

_SELECTS: Final = (
    ("gpu", "GPU", "wide"),
    ("gpus", "split among", ""),
    ("engine", "engine", ""),
    ("weights", "weights in", ""),
    ("kv", "keys and values in", ""),
    ("ssm_state", "recurrent states in", ""),
)
"""(what is asked, its label, a class)."""

_NUMBERS: Final = (("context", "context, tokens", 2**24), ("batch", "batch, sequences", 4096))
"""(what is asked, its label, the most)."""


def _number(name: str, label: str, most: int) -> str:
    return (
        f'<div><label for="plan-{name}">{escape(label)}</label>'
        f'<input id="plan-{name}" type="number" min="1" max="{most}" step="1" inputmode="numeric" '
        f'aria-describedby="plan-{name}_wrong">'
        f'<input id="plan-{name}_slide" type="range" min="0" max="{most.bit_length() - 1}" step="0.125" '
        f'aria-label="{escape(label)}, on a scale"><p id="plan-{name}_wrong" class="wrong" role="alert"></p></div>'
    )


def _select(name: str, label: str, kind: str) -> str:
    own = f' class="{kind}"' if kind else ""
    return f'<div{own}><label for="plan-{name}">{escape(label)}</label><select id="plan-{name}"></select></div>'


def planner_section(title: str, said: str, *, one: bool = False) -> str:
    """The controls and what follows from them; with `one` a model is chosen among many."""
    controls = [_select("model", "model", "wide")] if one else []
    controls += [_number(*number) for number in _NUMBERS]
    controls += [_select(*select) for select in _SELECTS]
    return section(
        title,
        said,
        '<fieldset class="controls" id="plan-setting"><legend class="unseen">Setting</legend>',
        *controls,
        "</fieldset>",
        '<p id="plan-told" class="said"></p>',
        '<p id="plan-verdict" role="status" aria-live="polite"></p>',
        '<div id="plan-bars"></div><ul class="legend" id="plan-legend"></ul>',
        '<dl class="facts" id="plan-limits"></dl>',
        '<ul class="notes" id="plan-notes"></ul>',
        '<pre id="plan-command" tabindex="0" aria-label="the command that serves it" hidden></pre>',
        '<div class="scroll" tabindex="0" role="region" aria-label="memory, line by line">',
        '<table id="plan-lines"></table></div>',
        '<details><summary>How each line is computed</summary><dl id="plan-how"></dl></details>',
    )


def planner_scripts(*names: str) -> list[str]:
    """The scripts that compute and draw, and those called `names`."""
    found = ("law.js", "planner.js", *names)
    return [f"<script>\n{(_FOLDER / name).read_text(encoding='utf-8')}</script>" for name in found]


def packed(document: Mapping[str, Any]) -> str:
    """A document as text for a page, compressed: its expressions repeat themselves."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(text, mtime=0)).decode()


def to_planner_page(document: Mapping[str, Any], reading: Mapping[str, Any] | None = None) -> str:
    """The page of many models as one HTML file.  `document` is that of minitron.report.planner, `reading` how a
    config.json becomes a model (minitron.report.reading)."""
    count = len(document["models"])
    drop = section(
        "A config.json of your own",
        "It is read in this page and goes nowhere.",
        '<div id="plan-drop"><label for="plan-file">Drop a config.json here, or choose one</label>'
        '<input id="plan-file" type="file" accept=".json,application/json">'
        '<p id="plan-dropped" role="status" aria-live="polite"></p></div>',
    )
    return "\n".join(
        [
            *head("Planner"),
            "<body>",
            '<header>\n<p class="eyebrow">Minitron planner</p>\n<h1>Which model fits which GPU</h1>\n'
            '<p class="summary">Memory of a model while it serves: weights, keys and values, recurrent states, and '
            "what an engine adds. Computed in this page by the laws of <code>minitron plan</code>.</p>\n</header>",
            "<main>",
            planner_section("Plan", f"{count} models and {len(document['gpus'])} GPUs.", one=True),
            drop if reading is not None else "",
            "</main>",
            footer(__version__),
            f'<script type="text/plain" id="packed">{packed(document)}</script>',
            *([f'<script type="text/plain" id="reading">{packed(reading)}</script>'] if reading is not None else []),
            *planner_scripts(*(["reading.js"] if reading is not None else []), "planner_page.js"),
            "</body>",
            "</html>",
            "",
        ]
    )


def report_data(law: Mapping[str, Any]) -> list[str]:
    """What the report's own planner computes with, and its scripts."""
    start = "Planner.start(JSON.parse(document.getElementById('law').textContent), false);"
    return [
        f'<script type="application/json" id="law">{json_text(law)}</script>',
        *planner_scripts(),
        f"<script>{start}</script>",
    ]
