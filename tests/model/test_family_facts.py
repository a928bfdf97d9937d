"""Published models of every known type: parameters and what a token costs, against counts made with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from minitron.errors import MinitronError
from minitron.memory.caches import kept
from minitron.memory.workload import Workload
from minitron.model.families import FAMILIES
from minitron.model.spec import ModelSpec, spec_of

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "families_facts.json").read_text()
)
REFUSED = {"Gemma-4-E4B-text": "hidden_size_per_layer_input is 256"}
"""Models of known types that have what Minitron cannot say -> the message about it."""

KNOWN = [name for name, facts in FACTS.items() if facts["model_type"] in FAMILIES and name not in REFUSED]


def spec(name: str) -> ModelSpec:
    return spec_of(FACTS[name]["config"] | {"model_type": FACTS[name]["model_type"]})


@pytest.mark.parametrize("name", KNOWN)
def test_parameters(name: str) -> None:
    found = spec(name).parameters()
    assert found.total == FACTS[name]["total_params"]
    assert found.active == FACTS[name]["active_params"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_table_cannot_describe_is_refused_by_name(name: str) -> None:
    with pytest.raises(MinitronError, match=REFUSED[name]):
        spec(name)


def test_no_family_falls_out_of_the_facts() -> None:
    """Two have no model in the file: nemotron_h is held to its published counts, granitemoeshared to transformers'."""
    built = {name for name, family in FAMILIES.items() if not family.blocks}
    assert built - {FACTS[name]["model_type"] for name in KNOWN} == {"nemotron_h", "granitemoeshared"}


@pytest.mark.parametrize("name", KNOWN)
def test_what_layers_keep(name: str) -> None:
    facts, model, context = FACTS[name], spec(name), 2**17
    keep = kept(model, Workload(context, 1, "bf16", "bf16", "fp32", "bf16"), model.sizes, model.kind_counts())
    whole = [one for one in keep.caches if one.window is None]
    windowed = [one for one in keep.caches if one.window is not None]
    assert sum(one.attention * one.token for one in whole) == facts["kv_bytes_per_token_bf16"]
    assert sum(one.attention * one.token for one in windowed) == facts["window_kv_bytes_per_token_bf16"]
    assert {one.window for one in windowed} <= {facts["window"]}
    assert sum(one.attention for one in whole) == facts["full_attention_layers"]
    assert sum(one.attention for one in windowed) == facts["window_layers"]
    in_windows = facts["window_kv_bytes_per_token_bf16"] * min(context, facts["window"] or 0)
    assert keep.kv_bytes == facts["kv_bytes_per_token_bf16"] * context + in_windows
    assert keep.conv_bytes // 2 + keep.state_bytes // 4 == (
        facts["state_conv_numbers"] + facts["state_recurrent_numbers"]
    )
