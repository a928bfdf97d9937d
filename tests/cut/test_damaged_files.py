"""Plans and scores whose files were edited or damaged: refused by name, and before anything is cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.app import run
from minitron.cut.plan import load_plan
from minitron.cut.scores import load_scores
from minitron.errors import MinitronError
from minitron.model.spec import read_spec


@pytest.fixture(scope="module")
def made(tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scores and a plan that cuts by indices and by a basis."""
    folder = tmp_path_factory.mktemp("made")
    scores = str(folder / "scores.safetensors")
    short = ["--samples", "2", "--sequence-length", "16", "--layer-scores", "fast", "--layer-samples", "2"]
    assert run(["score", str(tiny_hybrid), "--data", str(short_text), "-o", scores, *short]) == 0
    sizes = [
        "--lattice",
        "moe_intermediate_size=16",
        "--lattice",
        "hidden_size=24",
        "--lattice",
        "intermediate_size=40",
        "--budget",
        "1MiB",
    ]
    assert run(["plan", str(tiny_hybrid), "--context", "64", "--scores", scores, *sizes, "-o", str(folder / "r")]) == 0
    shutil.copy(folder / "r" / "plan.json", folder)
    shutil.copy(folder / "r" / "plan.bases.safetensors", folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def in_keep(axis: str, kept: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["keep"].update({next(key for key in plan["keep"] if key.startswith(axis)): kept})


PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a size that is a text": (lambda plan: plan["sizes"].update(hidden_size="24"), "sizes.hidden_size is '24'"),
    "no gains": (lambda plan: plan.pop("gains"), "gains is missing"),
    "layers that are a list": (lambda plan: plan.update(layers=[0, 1]), "layers is .*not a text"),
    "layers that are not there": (lambda plan: plan.update(layers="0-99"), "keeps layer 99 of 8"),
    "layers twice": (lambda plan: plan.update(layers="0,0"), "'0,0' do not ascend"),
    "a thousand million layers": (lambda plan: plan.update(layers="0-999999999"), "too many indices"),
    "no indices": (in_keep("ffn/", ""), "'' are no indices"),
    "indices beyond the axis": (in_keep("ffn/", "20-59"), "does not keep 40 of the 56 indices of ffn in layer"),
    "too few indices": (in_keep("ffn/", "0-38"), "does not keep 40 of the 56 indices of ffn in layer"),
    "indices of another shape": (in_keep("expert_ffn/", "0-15"), "does not keep 16 of the 24 indices of expert_ffn"),
    "an axis that is not there": (lambda plan: plan["keep"].update({"wings": "0-3"}), "wings, which is not there"),
    "an axis left out": (
        lambda plan: plan["keep"].pop(next(key for key in plan["keep"] if key.startswith("ffn/"))),
        "does not say what it keeps of ffn in layer",
    ),
    "a larger size": (lambda plan: plan["sizes"].update(intermediate_size=57), "57, more than the model's 56"),
    "gains of nothing": (
        lambda plan: plan["gains"].update({"x": [1.0]}),
        "gains of x are not those of a norm that it cuts",
    ),
    "a gain left out": (lambda plan: plan["gains"].pop(next(iter(plan["gains"]))), "has no gains of .*norm"),
    "gains beyond any weight": (
        lambda plan: plan["gains"].update({next(iter(plan["gains"])): [1e308]}),
        "are not those of a norm that it cuts",
    ),
    "gains that are not finite": (
        lambda plan: plan["gains"].update({next(iter(plan["gains"])): [float("nan")]}),
        "are not those of a norm",
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_was_edited_is_refused(case: str, folder: Path, tiny_hybrid: Path) -> None:
    change, told = PLANS[case]
    plan = json.loads((folder / "plan.json").read_text())
    load_plan(folder / "plan.json").require(read_spec(tiny_hybrid))
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(MinitronError, match=told):
        load_plan(folder / "plan.json").require(read_spec(tiny_hybrid))


def first(table: str) -> Callable[[dict[str, Any]], str]:
    return lambda arrays: next(name for name in sorted(arrays) if name.startswith(table))


def replaced(table: str, array: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        name = first(table)(arrays)
        arrays[name] = array(arrays[name])

    return change


SCORES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "too short": (replaced("importance/ffn", lambda one: one[:-1]), r"ffn/4 with the shape \[55\], not \[56\]"),
    "of another kind": (replaced("importance/ffn", lambda one: one.astype(np.int32)), "is no array of scores"),
    "a table that is none": (lambda arrays: arrays.update(x=np.ones(3)), "x is no array of scores"),
    "an axis that is none": (
        lambda arrays: arrays.update({"importance/wings": np.ones(3)}),
        "hold 'wings', which this model does not have",
    ),
    "a layer that is not there": (
        lambda arrays: arrays.update({"importance/ffn/99": np.ones(56)}),
        "ffn of layer 99, which is not there",
    ),
    "a key that is none": (lambda arrays: arrays.update({"importance/ffn/x": np.ones(56)}), "'ffn/x' names no axis"),
    "a covariance of another size": (
        replaced("covariance/ffn", lambda one: one[:-1, :-1].copy()),
        r"covariance of ffn/4 with the shape \[55, 55\]",
    ),
    "negative moments": (replaced("covariance/ffn", lambda one: -one), "hold a negative covariance of ffn"),
    "negative energy": (replaced("energy/", lambda one: -one), "hold a negative energy of"),
    "numbers that are none": (replaced("importance/ffn", lambda one: one * np.nan), "is not finite"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_were_edited_are_refused(case: str, folder: Path, tiny_hybrid: Path) -> None:
    change, told = SCORES[case]
    path = folder / "scores.safetensors"
    load_scores(path).require(read_spec(tiny_hybrid))
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, metadata=metadata_of(path))
    with pytest.raises(MinitronError, match=told):
        load_scores(path).require(read_spec(tiny_hybrid))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[1]", "does not hold scores of this version"),
        ("{", "is damaged"),
        ('{"version": 1}', "model is missing"),
        ('{"version": 1, "model": 1, "data": "", "settings": {}}', "model is 1, not a text"),
        ('{"version": 1, "model": "", "data": "", "settings": {"a": NaN}}', "it says NaN"),
        ('{"version": 1, "model": "", "data": "", "settings": {}, "ridges": {"ffn": "x"}}', "ridges.ffn is 'x'"),
    ],
)
def test_scores_that_say_other_things_are_refused(said: str, told: str, folder: Path) -> None:
    path = folder / "scores.safetensors"
    save_file(load_file(path), path, metadata={"minitron": said})
    with pytest.raises(MinitronError, match=told):
        load_scores(path)


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return dict(file.metadata())


def test_a_plan_that_says_other_things_of_its_scores_is_refused(folder: Path) -> None:
    plan = folder / "plan.json"
    load_plan(plan)
    document = json.loads(plan.read_text())
    del document["scores"]["data"]
    plan.write_text(json.dumps(document))
    with pytest.raises(MinitronError, match=r"scores\.data is missing"):
        load_plan(plan)
