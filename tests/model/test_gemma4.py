"""Gemma 4: two ways in which configs speak of full layers, the layer that must be the last, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import logits, random_scores
from family_sizes import FAMILY_SIZES
from tiny_models import save_family

from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.memory.workload import Workload
from minitron.model.spec import read_spec, spec_of
from minitron.search.depth import depth_of, mixes

SIZES = FAMILY_SIZES["gemma4_text"][3] | {"num_key_value_heads": 4, "num_attention_heads": 8}
PERIOD = ["sliding_attention"] * 2 + ["full_attention"]


def config(**changed: Any) -> dict[str, Any]:
    return SIZES | {"model_type": "gemma4_text"} | changed


def released(folder: Path) -> None:
    """Write the config as released models have it: transformers 5.23 writes what differs layer by layer instead."""
    path = folder / "config.json"
    said = json.loads(path.read_text())
    assert said.pop("per_layer_config") and "global_head_dim" not in said
    keys = {key: SIZES[key] for key in ("global_head_dim", "num_global_key_value_heads")}
    path.write_text(json.dumps(said | keys | {"use_bidirectional_attention": "vision"}))


@pytest.mark.parametrize("sizes", [{"num_global_key_value_heads": 1, "num_attention_heads": 4}, {"hidden_size": 24}])
def test_both_ways_to_speak_of_full_layers_are_cut_alike(sizes: dict[str, int], tmp_path: Path) -> None:
    layerwise = save_family(tmp_path / "layerwise", "gemma4_text", **SIZES)
    shutil.copytree(layerwise, tmp_path / "released")
    released(tmp_path / "released")
    assert torch.equal(logits(layerwise), logits(tmp_path / "released"))
    for folder in (layerwise, tmp_path / "released"):
        spec = read_spec(folder)
        assert (spec.sizes["global_head_dim"], spec.sizes["global_kv_head"], spec.sizes["head_dim"]) == (16, 2, 12)
        prune(folder, make_plan(spec, sizes, (1, 2, 3), random_scores(spec)), folder.with_suffix(".small"))
    small, other = (
        json.loads((tmp_path / f"{name}.small/config.json").read_text()) for name in ("layerwise", "released")
    )
    heads = sizes.get("num_global_key_value_heads", 2)
    assert small["per_layer_config"] == {layer: {"head_dim": 16, "num_key_value_heads": heads} for layer in "12"}
    assert "per_layer_config" not in other and other["num_global_key_value_heads"] == heads
    assert torch.equal(logits(tmp_path / "layerwise.small"), logits(tmp_path / "released.small"))


def test_the_last_layer_stays_for_transformers_makes_it_a_full_one() -> None:
    spec = spec_of(config(layer_types=PERIOD * 2, num_hidden_layers=6))
    assert spec.letters == "eeKeeK"
    with pytest.raises(MinitronError, match=r"layer 4 would be the last one.*keep a full layer behind it"):
        spec.resized({}, (0, 1, 4))
    scores = random_scores(spec)
    scores.importance["layer", None][5] = 0.0
    for count in range(1, 6):
        assert depth_of(spec, Workload(64), count, scores=scores)[-1] == 5
        assert depth_of(spec, Workload(64), count)[-1] == 5
    assert {kept[-1] for kept in mixes(spec, Workload(64), 2, scores=scores)} == {5}
    # Where a config says otherwise, transformers does not listen.
    assert spec_of(config(layer_types=["sliding_attention"] * 4)).letters == "eeeK"
    assert (
        spec_of(config(layer_types=["full_attention"] * 4)).family.stays(config(layer_types=["full_attention"] * 4))
        == frozenset()
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input is 8.*embeddings of each layer's own"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2.*keys and values of another"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ({"per_layer_config": {"2": {"head_dim": 16}, "3": {"head_dim": 8}}}, "per_layer_config says more"),
        ({"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}}, "per_layer_config says more"),
        ({"per_layer_config": {"2": {"intermediate_size": 8}, "3": {"intermediate_size": 8}}}, "says more than the"),
    ],
)
def test_what_the_table_cannot_say_is_refused_by_name(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        spec_of(config(**changed))
