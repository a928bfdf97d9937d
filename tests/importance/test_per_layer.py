"""Sizes by layer by measurement: a layer that does nothing gives all that is cut."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import random_scores
from safetensors.torch import load_file, save_file
from tiny_models import save_hybrid

from importance.search.per_layer import PerLayerOptions, refine
from importance.search.trial import Trials
from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.memory.footprint import footprint
from minitron.memory.workload import Workload
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.search.per_layer import distinct_starts

CPU = torch.device("cpu")
WORKLOAD = Workload(context=1, batch=1, weights="fp32")
KEY = "intermediate_size"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three MLPs, the second of which hardly writes anything and the third twice as much as the first."""
    folder = save_hybrid(tmp_path_factory.mktemp("quiet") / "model", pattern="M-*-M-")
    tensors = load_file(folder / "model.safetensors")
    for layer, factor in ((3, 1e-3), (5, 2.0)):
        tensors[f"backbone.layers.{layer}.mixer.down_proj.weight"] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_quiet_layer_gives_and_the_loud_one_keeps(quiet: Path, tmp_path: Path) -> None:
    spec, every = read_spec(quiet), tuple(range(6))
    scores = random_scores(spec)
    blocks = np.random.default_rng(0).integers(3, 300, (2, 32))
    store = tmp_path / "trials.jsonl"

    def plan(sizes: Mapping[str, int], kept: tuple[int, ...], by_layer: Any = None) -> Plan:
        return make_plan(spec, sizes, kept, scores, by_layer=by_layer)

    def run() -> tuple[Any, Trials]:
        trials = Trials(load_model(quiet, dtype=torch.float32, device=CPU), spec, blocks, store=store)
        starts = distinct_starts(spec, (), WORKLOAD)
        return refine(trials, starts, uniform, scores, plan, available, options=PerLayerOptions(2, 3)), trials

    uniform = plan({KEY: 42}, every)
    available = int(footprint(uniform.target(spec), WORKLOAD).total)
    found, trials = run()
    assert found.best is not None and found.best.bytes <= available
    own = found.best.by_layer[KEY]
    whole = spec.named_sizes[KEY]
    assert own[3] < 24 and own.get(5, whole) >= own.get(1, whole) >= 42
    assert found.best.measured.loss < 0.5 * found.uniform.loss
    # One more measured cut of each layer alone, two for the uniform choice and the first, and exchanges.
    assert trials.measured <= 1 + 3 * 2 + 1 + 3
    document = found.to_json()
    assert document["chosen"] == {KEY: {str(layer): size for layer, size in own.items()}}
    assert document["loss"] == found.best.measured.loss and set(document["curves"]) == {f"{KEY}/{n}" for n in (1, 3, 5)}
    # What was measured is what is written.
    prune(quiet, plan({}, every, found.best.by_layer), tmp_path / "small")
    assert Checkpoint(tmp_path / "small").weight_bytes == footprint(read_spec(tmp_path / "small"), WORKLOAD).weights
    assert Checkpoint(tmp_path / "small").weight_bytes <= footprint(uniform.target(spec), WORKLOAD).weights
    # A run that was stopped measures nothing twice.
    again, trials = run()
    assert trials.measured == 0 and again.to_json() == document
