"""A judge's verdict in a report: what share a student wins, with intervals, and the pairs that tell most.

add_part(folder, "judged", judged_document(results, telling))     into the report of a plan
write_page(path, judged_document(results, telling))              as a page of its own

Questions, answers and reasons come from models, and are shown as they are: nothing in them is obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from minitron import __version__
from minitron.escapes import html as escape
from minitron.escapes import visible
from minitron.files import write_text
from minitron.report.page import Cell, badge, footer, head, section, table
from minitron.report.text import Document

OUTCOMES: Final = ("wins", "ties", "losses", "broken")

COLUMNS: Final = ("", "pairs", "student wins", "tie", "teacher wins", "broken")

_TOLD: Final = {
    "second": ("the teacher won", "misses"),
    "first": ("the student won", "fits"),
    "tie": ("the orders disagree", "given"),
    "broken": ("broken format", "estimated"),
}
"""Outcome -> what it is called, and the kind of its badge."""


def judged_document(results: Mapping[str, Any], telling: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `judged` of the report's document holds: of results.json, and the pairs that tell most."""
    verdict, tokens = results["verdict"], results["tokens"]
    rows = [("all prompts", "all", verdict)]
    rows += [(name, "group", one) for name, one in verdict["by_group"].items()]
    rows += [(name, "quality", one) for name, one in verdict["by_quality"].items()]
    return {
        **{name: str(results[name]) for name in ("student", "teacher", "judge")},
        "rows": [_row(name, kind, one) for name, kind, one in rows],
        "verdicts_count": verdict["verdicts"],
        "broken_verdicts_count": verdict["broken_verdicts"],
        "empty_count": verdict["decided_by_an_empty_answer"],
        "orders_agree_share": verdict["orders_agree"],
        "took_the_first_share": verdict["took_the_first"],
        "tokens": None
        if tokens is None
        else {
            "student_mean_tokens": tokens["student_mean"],
            "teacher_mean_tokens": tokens["teacher_mean"],
            "student_share": tokens["ratio"],
            "student_interval_share": list(tokens["interval"]),
        },
        "telling": [dict(one) for one in telling],
    }


def _row(name: str, kind: str, tally: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "kind": kind, "pairs_count": tally["contests"]}
    for outcome in OUTCOMES:
        found[f"{outcome}_share"] = tally[outcome]["value"]
        found[f"{outcome}_interval_share"] = list(tally[outcome]["interval"])
    return found


def sentences(judged: Mapping[str, Any]) -> list[str]:
    """What came of it, in words."""
    whole = judged["rows"][0]
    told = [
        f"{judged['judge']} compared the answers of {judged['student']} with those of {judged['teacher']} to "
        f"{whole['pairs_count']:,} prompts, each pair in both orders; where the orders disagree it is a tie. Intervals "
        "are 95 %, from resampled pairs."
    ]
    if judged["orders_agree_share"] is not None:
        told.append(
            f"Both orders agree on {judged['orders_agree_share']:.0%} of the pairs with two rulings; "
            f"{judged['took_the_first_share']:.0%} of the rulings took the answer that was read first."
        )
    if judged["broken_verdicts_count"]:
        told.append(
            f"{judged['broken_verdicts_count']:,} of {judged['verdicts_count']:,} verdicts were not in the format; "
            "their pairs count as broken."
        )
    if judged["empty_count"]:
        told.append(f"{judged['empty_count']:,} pairs were decided by an empty answer, without the judge.")
    if (tokens := judged["tokens"]) is not None:
        low, high = tokens["student_interval_share"]
        told.append(
            f"The student takes {tokens['student_mean_tokens']:,.0f} tokens to answer and the teacher "
            f"{tokens['teacher_mean_tokens']:,.0f}: {tokens['student_share']:.2f} times as many ({low:.2f} to "
            f"{high:.2f})."
        )
    return told


def rows(judged: Mapping[str, Any]) -> list[list[str]]:
    """COLUMNS: all prompts, then every group, then every quality that decided."""
    kinds = {"all": "", "group": "prompts: ", "quality": "decided by "}
    return [
        [
            f"{kinds[row['kind']]}{row['name']}",
            f"{row['pairs_count']:,}",
            *(_share(row[f"{outcome}_share"], row[f"{outcome}_interval_share"]) for outcome in OUTCOMES),
        ]
        for row in judged["rows"]
    ]


def _share(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} ({interval[0]:.0%} to {interval[1]:.0%})"


def judged_section(document: Document) -> str:
    """HTML: the shares, and the pairs that tell most; empty for a report without a judge."""
    judged = document.get("judged")
    if judged is None:
        return ""
    marked: list[tuple[str, Sequence[Cell]]] = [
        ("sum" if row["kind"] == "all" else "", list(cells))
        for row, cells in zip(judged["rows"], rows(judged), strict=True)
    ]
    pairs = [_pair(one) for one in judged["telling"]]
    return section(
        "The answers, judged", " ".join(sentences(judged)), table(list(COLUMNS), marked), *pairs, kind="long"
    )


def _pair(one: Mapping[str, Any]) -> str:
    name, kind = _TOLD[one["outcome"]]
    decided = f", decided by {', '.join(one['focus'])}" if one["focus"] else ""
    said = one["broken"] or one["reasons"]
    return "\n".join(
        [
            f"<h3>{badge(name, kind)} {escape(one['where'] + decided)}</h3>",
            _quoted(one["question"]),
            '<div class="pair">',
            f"<div><p><b>Student</b></p>{_quoted(one['student'])}</div>",
            f"<div><p><b>Teacher</b></p>{_quoted(one['teacher'])}</div>",
            "</div>",
            f"<p><b>The judge</b></p>{_quoted(said)}" if said else "",
        ]
    )


def _quoted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def write_page(path: Path, judged: Mapping[str, Any]) -> None:
    """Write the section as a page of its own."""
    title = f"{judged['student']} against {judged['teacher']}"
    page = [
        *head(visible(title)),
        "<body>",
        f'<header>\n<p class="eyebrow">Minitron judge</p>\n<h1>{escape(visible(title))}</h1>\n</header>',
        "<main>",
        judged_section({"judged": judged}),
        "</main>",
        footer(__version__),
        "</body>",
        "</html>",
        "",
    ]
    write_text(path, "\n".join(page))
