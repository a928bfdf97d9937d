"""Config files as they were released, with the older keys that they have: parameters, and which layers keep what."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import DynamicCache
from transformers.configuration_utils import remap_legacy_layer_types
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.memory.caches import kept
from minitron.memory.workload import Workload
from minitron.model.families.layer_lists import OLDER_WORDS
from minitron.model.spec import ModelSpec, spec_of

REFERENCE = Path(__file__).parents[1] / "reference"
RELEASED: dict[str, dict[str, Any]] = json.loads((REFERENCE / "released_configs.json").read_text())


def attending(spec: ModelSpec) -> tuple[int, dict[int, int]]:
    """How many layers keep every token, and window -> how many keep so many."""
    caches = [one for one in kept(spec, Workload(2**18), spec.sizes, spec.kind_counts()).caches if one.attention]
    windows: dict[int, int] = {}
    for one in caches:
        if one.window is not None:
            windows[one.window] = windows.get(one.window, 0) + one.attention
    return sum(one.attention for one in caches if one.window is None), windows


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_read_as_they_are(name: str) -> None:
    facts = RELEASED[name]
    spec = spec_of(facts["config"])
    assert spec.parameters().total == facts["parameters"]
    windows = {facts["window"]: facts["window_layers"]} if facts["window_layers"] else {}
    assert attending(spec) == (facts["full_attention_layers"], windows)


@pytest.mark.parametrize("name", ["granite-4.0-h-small", "Kimi-Linear-48B-A3B", "SmolLM3-3B"])
def test_what_transformers_saves_of_a_released_config_is_the_same_model(name: str) -> None:
    """It writes other words for kinds of layers, other keys for rotary embeddings and dtype, and every default."""
    facts = RELEASED[name]
    config = {key: value for key, value in facts["config"].items() if key != "auto_map"}
    saved = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    again = spec_of({**json.loads(saved.to_json_string(use_diff=False)), "model_type": config["model_type"]})
    assert again.letters == spec_of(config).letters
    assert again.parameters().total == facts["parameters"]
    assert attending(again) == (facts["full_attention_layers"], {})


def test_older_words_for_kinds_of_layers_are_transformers_own() -> None:
    assert remap_legacy_layer_types(list(OLDER_WORDS)) == list(OLDER_WORDS.values())


def test_a_config_saved_when_indexed_attention_was_called_sparse_is_read() -> None:
    glm = json.loads((REFERENCE / "families_facts.json").read_text())["GLM-5"]
    sizes = glm["config"] | {"model_type": "glm_moe_dsa"}
    older = sizes | {"layer_types": ["deepseek_sparse_attention"] * sizes["num_hidden_layers"]}
    spec = spec_of(older)
    assert spec.letters == spec_of(sizes).letters and spec.parameters().total == glm["total_params"]
    theirs = CONFIG_MAPPING["glm_moe_dsa"].from_dict(older)
    assert attending(spec) == (len(DynamicCache(config=theirs).layers), {})
