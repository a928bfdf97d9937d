"""The learning curve in the report: from the results of a distillation to the page and the Markdown."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny_models
from training_results import losses, results

from cli.app import run
from minitron.report.charts import figures
from minitron.report.document import read_schema, report_files
from minitron.report.html import to_html
from minitron.report.markdown import to_markdown
from minitron.report.training import training_document


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_hybrid: Path) -> Path:
    """The folder of a plan's report."""
    folder = tmp_path_factory.mktemp("plan") / "report"
    assert run(["plan", str(tiny_hybrid), "--budget", "1MB", "--context", "32", "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def document(plain: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((plain / "report.json").read_text())
    return found | {"training": training_document(results(), losses())}


def test_it_obeys_the_schema_and_a_spoiled_one_does_not(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(read_schema())
    validator.validate(document)
    validator.validate({name: value for name, value in document.items() if name != "training"})
    for spoil in (
        lambda d: d["training"].update(points=[]),
        lambda d: d["training"]["points"][0].pop("kl_nats"),
        lambda d: d["training"].update(number=3),
        lambda d: d["training"]["points"][0].update(agreement_share=2.0),
        lambda d: d["training"]["steps"].update(each_count=0),
    ):
        spoiled = copy.deepcopy(document)
        spoil(spoiled)
        assert not validator.is_valid(spoiled)


def test_steps_are_thinned_to_means(document: dict[str, Any]) -> None:
    steps = document["training"]["steps"]
    assert steps["each_count"] == 3 and steps["trained_tokens"][-1] == 64_000
    # Of the first three two were skipped.
    assert steps["mean_loss"][0] == pytest.approx(1 / 3)
    assert steps["mean_loss"][1] == pytest.approx((1 / 4 + 1 / 5 + 1 / 6) / 3)
    assert len(steps["mean_loss"]) == len(steps["trained_tokens"]) == 334
    short = training_document(results(steps=2, tokens=128), [0.5, math.nan])["steps"]
    assert short == {"each_count": 1, "trained_tokens": [64], "mean_loss": [0.5]}


def test_page_and_markdown_tell_it(document: dict[str, Any], plain: Path) -> None:
    page, told = to_html(document), to_markdown(document)
    for text in (page, told):
        assert "the KL to the teacher went" in text
        assert "from 2 to 0.5 nats" in text and "2,000 tokens/s" in text
        assert "2.000 MiB" in text and "2 steps were skipped" in text
    assert re.search(r'<tr class="picked"><td class="words">400</td>', page)
    assert "| **400** | 25,600 | 0.5 | 30 | 50.0% |" in told
    figure = figures(document)["training"]
    assert figure["data"][1]["y"] == [2.0, 0.5, 0.75] and figure["data"][1]["x"] == [0, 25_600, 64_000]
    without = report_files(json.loads((plain / "report.json").read_text()))
    assert all("the KL to the teacher went" not in text for text in without.values())
    assert "training" not in figures(json.loads((plain / "report.json").read_text()))


def test_tasks_have_columns_and_stay_text(document: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script>"
    curve = [point | {"tasks": {evil: {"acc": 0.25, "acc_stderr": 0.1}}} for point in results()["curve"]]
    document["training"] = training_document(results(curve=curve, drift=None), losses())
    jsonschema.Draft202012Validator(read_schema()).validate(document)
    page = to_html(document)
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; acc" in page and "<script>alert" not in page
    assert "<td>0.25</td>" in page and "stderr" not in page[: page.index('id="figures"')]


def test_distill_adds_it_to_the_report(
    plain: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tiny_models.save_hybrid(tmp_path / "student", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4)
    arguments = ["distill", str(student), "--teacher", str(tiny_hybrid), "--data", str(short_text)]
    arguments += ["--steps", "2", "--sequence-length", "16", "--batch-tokens", "64", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--report", str(tmp_path)]) == 2
    assert "report.json does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out.work").exists()
    assert run([*arguments, "--report", str(plain), "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)["results"]["curve"]
    document = json.loads((plain / "report.json").read_text())
    jsonschema.Draft202012Validator(read_schema()).validate(document)
    assert [point["kl_nats"] for point in document["training"]["points"]] == [point["kl"] for point in curve]
    assert len(document["training"]["steps"]["mean_loss"]) == 2
    for name, text in report_files(document).items():
        assert (plain / name).read_text() == text
    assert json.loads((tmp_path / "out/distillation.json").read_text()) == document["training"]
