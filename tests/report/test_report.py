"""The report: its document, the schema, the Markdown and the page."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from planning_models import LONG, NANO_2, WORKLOAD, a10g, nano_12b, published, random_scores, tiny

from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.questions import remedies
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec
from minitron.report.charts import figures
from minitron.report.document import build_report, read_schema, write_report
from minitron.report.html import to_html
from minitron.report.markdown import to_markdown
from minitron.search.format_choices import OUTSIDE, format_choices
from minitron.search.kept_importance import kept_importance
from minitron.search.offered_formats import form_of, parts_of
from minitron.search.search import build_lattice, search
from minitron.units import GiB, format_bytes

WORKSPACE = round(0.65 * GiB)
COMMAND = "minitron plan Nemotron-Nano-12B-v2.json --gpu A10G --context 128k"


def report_of(spec: ModelSpec, name: str, budget: Budget, *, scored: bool = False, **workload: Any) -> dict[str, Any]:
    serving = workload_of(spec, workload.pop("context", LONG), workload.pop("batch", 1), **workload)
    scores = random_scores(spec) if scored else None
    result = search(build_lattice(spec, serving, scores=scores), serving, budget, scores=scores, top=6)
    return build_report(
        spec,
        name,
        result,
        scores=scores,
        remedies=remedies(spec, serving, budget),
        command=COMMAND if not scored else "",
    )


@pytest.fixture(scope="module")
def nano_2() -> dict[str, Any]:
    """The report of NVIDIA's own search: 27 widths at 56 layers on an A10G."""
    spec, budget = nano_12b(), a10g(WORKSPACE)
    serving = workload_of(spec, LONG)
    result = search(build_lattice(spec, serving, lattice=NANO_2, layers=56), serving, budget, sort="memory")
    return build_report(
        spec, "models/Nemotron-Nano-12B-v2.json", result, remedies=remedies(spec, serving, budget), command=COMMAND
    )


@pytest.fixture
def document(nano_2: dict[str, Any]) -> dict[str, Any]:
    """A copy of it to spoil."""
    return copy.deepcopy(nano_2)


def validator() -> jsonschema.Draft202012Validator:
    schema = read_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


VLLM = {"engine": Engine("vllm"), "tensor_parallel": 2, "weights": "fp8", "kv": "fp8", "batch": 4}
REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "12B": lambda: report_of(nano_12b(), "12B", a10g(WORKSPACE)),
    "30B on vLLM, two GPUs": lambda: report_of(
        published("Nemotron-3-Nano-30B-A3B"),
        "30B",
        Budget(find_gpu("L4").usable, 0.92, 0, None, find_gpu("L4")),
        **VLLM,
    ),
    "a tiny hybrid with scores": lambda: report_of(
        tiny(), "tiny", Budget(240 * 2**10), scored=True, context=64, weights="fp32"
    ),
    "a Llama that fits": lambda: report_of(
        published("Llama-3.1-8B"),
        "Llama",
        Budget(find_gpu("H200").usable, 0.9, 0, None, find_gpu("H200")),
        context=4096,
    ),
    "a unified device without FP8": lambda: report_of(
        nano_12b(), "12B", Budget(60 * GiB, 1, 0, 0, find_gpu("Jetson AGX Orin 64GB")), weights="fp8"
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_obeys_the_schema_and_renders(name: str) -> None:
    document = REPORTS[name]()
    validator().validate(document)
    assert document["summary"] in to_markdown(document).replace("\\", "")
    page = to_html(document)
    assert all(f'id="{chart}"' in page for chart in figures(document))
    # Nothing but the document counts: read back from a file it gives the same texts.
    again = json.loads(json.dumps(document))
    assert (to_html(again), to_markdown(again)) == (page, to_markdown(document))


def rename(value: dict[str, Any], old: str, new: str) -> None:
    value[new] = value.pop(old)


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a unit is missing": lambda d: rename(d["parent"], "total_bytes", "total"),
    "a number without a unit is added": lambda d: d["terms"]["parent"][0].update(number=3),
    "a negative size": lambda d: d["parent"]["lines_bytes"].update(weights=-1),
    "a negative budget": lambda d: d["budget"].update(available_bytes=-1),
    "half a byte": lambda d: d["candidates"][0].update(total_bytes=1.5),
    "another version": lambda d: d.update(version=2),
    "no version": lambda d: d.pop("version"),
    "an origin that is none": lambda d: d["terms"]["parent"][0].update(origin="guessed"),
    "a line is missing": lambda d: d["parent"]["lines_bytes"].pop("kv_cache"),
    "no layer stays": lambda d: d["candidates"][0].update(kept_layer_indices=[]),
    "a size of 0": lambda d: d["parent"]["sizes_count"].update(hidden_size=0),
    "a share above 1": lambda d: d["budget"].update(utilization_share=1.1),
    "a fingerprint that is none": lambda d: d["model"].update(config_sha256="abc"),
    "an unknown field": lambda d: d.update(extra="text"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_document_does_not_obey_it(document: dict[str, Any], how: str) -> None:
    check = validator()
    assert check.is_valid(document)
    SPOILED[how](document)
    assert not check.is_valid(document)


def test_numbers_without_a_unit_are_refused_wherever_no_field_is_known() -> None:
    schema = read_schema()
    united = jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/united"})
    assert united.is_valid({"total_bytes": 1, "inner": [{"kept_share": 0.5, "texts": ["a"]}], "layer_indices": [1, 2]})
    for bare in ({"total": 1}, {"inner": {"total": 0.5}}, {"inner": [{"size": 1}]}, {"points": [1, 2]}):
        assert not united.is_valid(bare), bare


def test_the_numbers_of_nano_2(nano_2: dict[str, Any]) -> None:
    # Parameters are the published counts; the rest is reckoned here: 6 attention layers with 8 KV heads of 128, 28
    # Mamba layers with (128 x 80 + 2 x 8 x 128) channels of 3 columns in bf16 and 128 x 80 x 128 states in fp32.
    parent, best = nano_2["parent"], nano_2["candidates"][0]
    assert parent["lines_bytes"] == {
        "weights": 12_310_001_152 * 2,
        "kv_cache": 6 * LONG * 2 * 8 * 128 * 2,
        "conv_state": 28 * 12_288 * 3 * 2,
        "ssm_state": 28 * 128 * 80 * 128 * 4,
        "workspace": WORKSPACE,
    }
    assert parent["total_bytes"] == sum(parent["lines_bytes"].values())
    available = int(round(22.06 * GiB) * 0.95) - round(1.3 * GiB)
    assert nano_2["budget"]["available_bytes"] == available
    assert parent["spare_bytes"] == available - parent["total_bytes"] < 0
    assert (nano_2["searched_architectures"], nano_2["feasible_architectures"]) == (27, 9)
    assert [best["sizes_count"][key] for key in ("hidden_size", "intermediate_size", "mamba_num_heads")] == [
        4800,
        14400,
        120,
    ]
    # The sums without workspace are published: 26.068 and 18.825 GiB.
    assert nano_2["summary"].startswith(
        "Nemotron-Nano-12B-v2 does not fit A10G at 131,072 tokens \u00d7 1 sequence: it needs 26.718 GiB of 19.657 "
        "GiB, 7.061 GiB too much; cut to 56 layers, hidden 4,800, FFN 14,400, Mamba heads 120 it keeps 8.966 B "
        "parameters (73%) and needs 19.475 GiB, "
    )


def test_curves_and_where_they_meet_the_budget(nano_2: dict[str, Any]) -> None:
    # The third candidate has the widths of the released 9B: 8,888,227,328 parameters, 16,384 bytes of keys and values
    # a token, 27 states of 5,316,608 bytes a sequence.
    available, context, batch = nano_2["budget"]["available_bytes"], *nano_2["curves"].values()
    weights, token, state = 8_888_227_328 * 2, 16_384, 27 * 5_316_608
    longest = (available - weights - WORKSPACE - state) // token
    most = (available - weights - WORKSPACE) // (state + LONG * token)
    of_context, of_batch = (next(s for s in c["series"] if s["label"] == "#3") for c in (context, batch))
    assert (of_context["largest_tokens"], of_batch["largest_sequences"]) == (longest, most)
    assert of_context["at_largest_bytes"] == weights + WORKSPACE + state + longest * token
    assert of_context["total_bytes"] == [weights + WORKSPACE + state + n * token for n in context["context_tokens"]]
    assert of_batch["total_bytes"] == [
        weights + WORKSPACE + n * (state + LONG * token) for n in batch["batch_sequences"]
    ]
    assert {2**n for n in range(10, 19)} <= set(context["context_tokens"])
    assert longest in context["context_tokens"]
    assert context["series"][0]["label"] == "model"
    assert context["series"][0]["largest_tokens"] == 0  # its weights alone are too much


def test_terms_sum_up_to_the_totals(nano_2: dict[str, Any]) -> None:
    for terms, candidate in (("parent", nano_2["parent"]), ("chosen", nano_2["candidates"][nano_2["chosen_index"]])):
        assert sum(term["bytes"] for term in nano_2["terms"][terms]) == candidate["total_bytes"]


def test_markdown_says_the_numbers(nano_2: dict[str, Any]) -> None:
    told = to_markdown(nano_2)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines() if line[:1] == "|"]
    assert ["weights", "22.929 GiB", "16.700 GiB"] in rows
    assert ["**total**", "**26.718 GiB**", "**19.475 GiB**"] in rows
    spare = nano_2["budget"]["available_bytes"] - (8_888_227_328 * 2 + LONG * 16_384 + 27 * 5_316_608 + WORKSPACE)
    nine_b = ["#3", "56", "4,480", "15,680", "128", "8.888 B", "19.339 GiB", f"{spare / 2**20:.3f} MiB"]
    assert nine_b in rows
    assert next(row for row in rows if row[0] == "**#1 chosen**")[1:7] == [
        *("56", "4,800", "14,400", "120"),
        *("8.966 B", "19.475 GiB"),
    ]
    assert "9 of 27 architectures fit; ranked by memory, the largest that fits first:" in told
    assert "model   M-M-M-M*-M-M-M-M*-M-M-M-M*" in told
    assert "chosen  M-M-M-M*-M-M-M-M..M-M-M-M*" in told
    remedy = nano_2["remedies"][0]
    assert [f"`{remedy['flags']}`", format_bytes(remedy["total_bytes"])] in [row[1:3] for row in rows]
    assert f"~~~~sh\n{COMMAND}\n~~~~" in told
    # Every table is one: as many cells in each of its rows.
    for table in re.findall(r"(?:^\|.*\n)+", told, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_hostile_texts_stay_texts(document: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=http://evil.example/x> | `x` & \u2028"
    document["model"]["name"] = document["command"] = document["ranking"] = evil
    document["warnings"].append({"text": evil, "source": evil, "labels": []})
    document["terms"]["parent"][0]["filled"] = document["terms"]["parent"][0]["title"] = evil
    document["remedies"][0]["flags"] = evil
    document["model"]["size_labels"]["hidden_size"] = evil
    page, plain = to_html(document), to_html({**document, "model": {**document["model"], "name": "x"}})
    for text in (page, plain):
        own = text[: text.index("/**")] + text[text.rindex('"use strict"') :]  # without plotly.js
        assert "<script>alert" not in own
        assert "<img" not in own
        # The figures', the laws' and the page's own; plotly.js's is cut out.
        assert own.count("</script>") == 6
    told = to_markdown(document)
    # Code is shown as it is; elsewhere no sign stands that Markdown or HTML would read.
    outside = re.sub(r"^~~~~.*?^~~~~|^```.*?^```|`` .*? ``", "", told, flags=re.DOTALL | re.MULTILINE)
    assert "\\<script\\>" in outside
    assert not re.search(r"(?<!\\)<", outside)
    assert "\u2028" not in told


def test_the_page_needs_nothing_from_elsewhere(nano_2: dict[str, Any]) -> None:
    page = to_html(nano_2)
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page[: page.index("/**")])
    assert not re.findall(r"<script[^>]+src|<link[^>]+stylesheet|@import|url\(\s*['\"]?http", page)
    assert "default-src 'none'" in page
    embedded = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert embedded is not None
    assert json.loads(embedded[1]) == figures(nano_2)


def test_the_folder_is_written_whole_or_not_at_all(nano_2: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(folder, nano_2, overwrite=False)
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((folder / "report.json").read_text()) == nano_2
    assert (folder / "report.md").read_text() == to_markdown(nano_2)
    with pytest.raises(MinitronError, match="exists already"):
        write_report(folder, nano_2, overwrite=False)
    write_report(folder, {**nano_2, "command": "again"}, overwrite=True)
    assert "again" in (folder / "report.md").read_text()
    broken = {key: value for key, value in nano_2.items() if key != "terms"}
    with pytest.raises(KeyError):
        write_report(tmp_path / "other", broken, overwrite=False)
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


def test_kept_importance_against_a_plain_loop() -> None:
    spec = tiny()
    scores = random_scores(spec)
    heads, width = spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"]
    layers = tuple(layer for layer in range(len(spec.layers)) if layer != 2)
    sizes = {**spec.named_sizes, "mamba_num_heads": heads // 2, "mamba_head_dim": width // 2, "hidden_size": 16}
    found = kept_importance(spec, scores, sizes, layers)
    assert {layer for _, layer in found if layer is not None} == {
        layer for layer in layers if spec.layers[layer] == "mamba"
    }
    hidden = sorted((value**2 for value in scores.importance["hidden", None]), reverse=True)
    assert found["hidden", None] == pytest.approx(sum(hidden[:16]) / sum(hidden))
    groups = spec.sizes["mamba_group"]
    for layer in (layer for layer in layers if spec.layers[layer] == "mamba"):
        energy = np.square(scores.importance["mamba_channel", layer])
        channels = np.argsort(-energy.sum(0), kind="stable")[: width // 2]
        left = energy[:, channels].sum(1)
        best = sum(sum(sorted(part, reverse=True)[: heads // groups // 2]) for part in left.reshape(groups, -1))
        assert found["mamba_head_dim", layer] == pytest.approx(energy[:, channels].sum() / energy.sum())
        assert found["mamba_head", layer] == pytest.approx(best / left.sum())


def test_no_heavy_import_on_the_way() -> None:
    code = (
        "import sys, minitron.report.document; "
        "print([m for m in ('torch', 'plotly', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_bits_by_part_and_why_they_were_chosen() -> None:
    spec = tiny(hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    serving = replace(WORKLOAD, weights="bf16", kv="bf16")
    lattice = build_lattice(spec, serving, lattice={"intermediate_size": "64,48,32"})
    lattice = replace(lattice, formats=format_choices(spec, serving, ["bf16", "int8", "int4"], ["bf16", "fp8"]))
    budget = Budget(footprint(spec, serving).total * 6 // 10)
    result = search(lattice, serving, budget, top=4)
    document = build_report(spec, "tiny", result, remedies=())
    validator().validate(document)
    best, left = result.best, spec.resized(result.best.sizes, result.best.kept)
    assert best.formats is not None
    assert document["candidates"][0]["formats"] == best.formats.of
    counts = left.parameters().by_component
    for part in (*parts_of(spec), "lm_head"):
        held = [own for layer in document["bits"] for own in layer["parts"] if own["part"] == part]
        assert {own["form"] for own in held} == {best.formats.of[part]}
        # Routers, convolutions and biases are no linears that formats speak of.
        assert 0.5 * counts[part] < sum(own["parameters"] for own in held) <= counts[part]
    cut, *costs = document["costs"]
    assert (cut["part"], {one["part"]: one["form"] for one in costs}) == ("the cut", best.formats.of)
    assert cut["loss_share"] + sum(one["loss_share"] for one in costs) == pytest.approx(1)
    active = left.parameters().active
    used = left.parameters().active_by_component | {"lm_head": OUTSIDE["lm_head"] * active}
    numbers = {one["part"]: used.get("attention" if one["part"] == "kv" else one["part"], 0) for one in costs}
    errors = {one["part"]: numbers[one["part"]] * form_of(one["form"]).relative_error for one in costs}
    for one in costs:
        assert one["loss_share"] == pytest.approx(
            costs[0]["loss_share"] * errors[one["part"]] / errors[costs[0]["part"]]
        )
    share = 1 - best.parameters / spec.parameters().total
    lost = 1.4**1.5 * sum(errors.values()) / active
    assert cut["loss_share"] == pytest.approx(share**1.5 / (share**1.5 + lost))
    assert document["why"].startswith("Worth, by the prior, as much as a cut alone to: ")
    assert "a cut alone does not fit" in document["why"] or "a cut alone " in document["why"]
    assert sum(term["bytes"] for term in document["terms"]["chosen"]) == best.footprint.total
    page, text = to_html(document), to_markdown(document)
    assert page.count('<li title="layer ') >= len(best.kept)
    assert "Bits by part" in page
    assert document["why"] in text
    assert "mlp in int" in document["summary"]
    plain = report_of(spec, "tiny", budget, context=64, batch=2)
    assert (plain["bits"], plain["why"]) == ([], "")
    assert "Bits by part" not in to_html(plain)


def test_what_a_gpu_lacks_for_the_formats_that_were_chosen_is_told() -> None:
    spec = nano_12b()
    serving = workload_of(spec, LONG)
    lattice = build_lattice(spec, serving, layers=62, lattice={"hidden_size": "5120"})
    lattice = replace(lattice, formats=format_choices(spec, serving, ["fp8"]))
    result = search(lattice, serving, a10g(WORKSPACE))
    document = build_report(spec, "tiny", result, remedies=())
    told = [warning["text"] for warning in document["warnings"]]
    assert any("A10G has no native FP8" in text for text in told)
    assert len(told) == len(set(told))
