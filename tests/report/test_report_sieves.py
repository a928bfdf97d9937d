"""How an architecture was chosen, as the report tells it."""

import copy
import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from planning_models import random_scores, tiny

from minitron.memory.budget import Budget
from minitron.memory.workload import workload_of
from minitron.report.charts import figures
from minitron.report.document import build_report, read_schema
from minitron.report.html import to_html
from minitron.report.markdown import to_markdown
from minitron.report.sieves import ROWS, in_order, is_built, sieves_document
from minitron.search.search import build_lattice, search

CHOSEN = 1
"""The place among the candidates of the one that recovers best."""


def measured(candidates: Any, count: int) -> dict[str, Any]:
    """What a search by measurement says of `count` candidates, the first of which come back."""
    verdicts = [
        {
            "sizes": dict(candidate.sizes),
            "kept_layers": list(candidate.kept),
            "memory": int(candidate.footprint.total),
            "origin": "round 1: among the best predicted",
            "first_rank": 40 + place,
            "predicted": 0.125 * (place + 1),
            "predicted_rank": place + 3,
            "measured": {
                "loss": 0.25 * (place + 1),
                "kl": 0.25 * (place + 1),
                "perplexity": 20.0 + place,
                "top1_agreement": 0.75,
                "seconds": 1.0,
            },
            "measured_rank": place + 1,
            "kept": place < 2,
            "reason": f"dropped: {place + 1} times the least loss",
        }
        for place, candidate in enumerate(candidates[:count])
    ]
    return {
        "objective": "kl",
        "evaluations": 71,
        "heldout_rank_correlation": 0.96875,
        "heldout_relative_error": 0.125,
        "verdicts": verdicts,
    }


def document_of(count: int = 30, *, raced: bool = True) -> dict[str, Any]:
    spec, budget = tiny(), Budget(240 * 2**10)
    serving, scores = workload_of(spec, 64, 1, weights="fp32"), random_scores(spec)
    result = search(build_lattice(spec, serving, scores=scores), serving, budget, scores=scores, top=40)
    found = measured(result.candidates, count)
    finalists = [
        {
            "sizes": verdict["sizes"],
            "kept_layers": verdict["kept_layers"],
            "kl_before": verdict["measured"]["kl"],
            "kl_after": after,
            "perplexity_after": 19.0,
            "reason": reason,
        }
        for verdict, after, reason in zip(
            found["verdicts"], (0.0625, 0.03125), ("dropped: 2 times", "chosen: it recovers best"), strict=False
        )
    ]
    race = {"tokens": 4096, "finalists": finalists, "chosen": CHOSEN} if raced else None
    result = replace(result, chosen=CHOSEN if raced else 0)
    return build_report(spec, "tiny", result, scores=scores, sieves=sieves_document(found, race))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return document_of()


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read_schema())


def test_the_document_obeys_the_schema_and_a_spoiled_one_does_not(whole: dict[str, Any]) -> None:
    validator().validate(whole)
    validator().validate(document_of(raced=False))
    for spoil in (
        lambda d: d["sieves"]["verdicts"][0].update(number=1),
        lambda d: d["sieves"]["verdicts"][0].pop("reason"),
        lambda d: d["sieves"].update(verdicts=[]),
        lambda d: d["sieves"].update(heldout_rank_correlation=1.5),
        lambda d: d["sieves"]["verdicts"][0].update(kl_nats=-0.5),
        lambda d: d.pop("sieves"),
    ):
        spoiled = copy.deepcopy(whole)
        spoil(spoiled)
        assert not validator().is_valid(spoiled)


def test_finalists_come_first_and_the_one_that_is_built_is_the_chosen_one(whole: dict[str, Any]) -> None:
    order = in_order(whole)
    assert [verdict["measured_rank"] for verdict in order[:4]] == [2, 1, 3, 4]
    assert [is_built(whole, verdict) for verdict in order].index(True) == 0
    assert sum(is_built(whole, verdict) for verdict in order) == 1


def test_every_verdict_and_its_reason_stand_in_the_page_and_most_in_markdown(whole: dict[str, Any]) -> None:
    page, told = to_html(whole), to_markdown(whole)
    for verdict in whole["sieves"]["verdicts"]:
        reason = verdict["distilled"]["reason"] if verdict["distilled"] else verdict["reason"]
        assert reason in page
    table = [line for line in told.splitlines() if "times the least loss" in line or "recovers best |" in line]
    assert len(table) == ROWS - 1  # the other finalist was dropped after its distillation
    assert "6 more were measured" in told
    assert "rank correlation of 0.97 (typical error 12%)" in page
    assert "71 architectures were cut" in page
    assert "distilled on 4,096 tokens each" in page
    assert "0.5 \u2192 0.03125" in told
    assert "no weights were read" not in told
    for lines in re.findall(r"(?:^\|.*\n)+", told, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1
    again = json.loads(json.dumps(whole))
    assert (to_html(again), to_markdown(again)) == (page, told)


def test_the_chart_shows_every_measurement_once(whole: dict[str, Any]) -> None:
    traces = {trace["name"]: trace for trace in figures(whole)["sieves"]["data"]}
    assert {name: len(trace["x"]) for name, trace in traces.items()} == {
        "measured": 28,
        "distilled briefly": 1,
        "chosen": 1,
    }
    assert traces["chosen"]["y"] == [0.5]


def test_without_measurements_nothing_is_said_of_them() -> None:
    document = document_of()
    document["sieves"] = None
    assert "How it was chosen" not in to_html(document) + to_markdown(document)
    assert "sieves" not in figures(document)


def test_a_candidate_that_lost_every_layer_of_a_kind_is_shown_without_its_size(whole: dict[str, Any]) -> None:
    document = copy.deepcopy(whole)
    key = next(key for key in document["sieves"]["verdicts"][5]["sizes_count"] if key != "num_hidden_layers")
    del document["sieves"]["verdicts"][5]["sizes_count"][key]
    validator().validate(document)
    assert to_html(document) != to_html(whole)


def test_hostile_reasons_stay_texts(whole: dict[str, Any]) -> None:
    document = copy.deepcopy(whole)
    evil = "</script><img src=x> **bold** | `x`"
    for verdict in document["sieves"]["verdicts"]:
        verdict["reason"] = verdict["origin"] = evil
    page = to_html(document)
    own = page[: page.index("/**")] + page[page.rindex('"use strict"') :]
    assert "<img" not in own
    assert "\\*\\*bold\\*\\* \\|" in to_markdown(document)
