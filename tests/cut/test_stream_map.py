"""What a cut writes of the residual stream: where the student's lies in its parent's."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stream_cuts import plan_of, told_of

from minitron.cut.companions import RECORD
from minitron.cut.prune import prune
from minitron.cut.stream_map import FOLDER
from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.model.identity import weights_of

FIXTURES = ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"]


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("rotate", [True, False])
def test_a_cut_tells_where_the_stream_lies(
    fixture: str, rotate: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent: Path = request.getfixturevalue(fixture)
    plan = plan_of(parent, hidden=24, rotate=rotate)
    prune(parent, plan, tmp_path / "small")
    told = told_of(tmp_path / "small")
    assert told.layers == plan.layers and told.weights == weights_of(parent)["sha256"]
    states = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 32))).float()
    cut = plan.keep["hidden", None]
    wanted = states[..., cut] if isinstance(cut, np.ndarray) else states.double() @ torch.from_numpy(cut.matrix)
    torch.testing.assert_close(told.of_student(states), wanted.float(), rtol=1e-5, atol=1e-5)
    prune(parent, replace(plan, weights={}), tmp_path / "unnamed")
    assert told_of(tmp_path / "unnamed").weights is None
    # Engines take any safetensors file beside the weights for weights.
    assert (tmp_path / "small" / FOLDER).is_dir() is rotate
    assert [file.name for file in (tmp_path / "small").glob("*.safetensors")] == ["model.safetensors"]


@pytest.fixture(scope="module")
def sound(tiny_hybrid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "small"
    prune(tiny_hybrid, plan_of(tiny_hybrid, hidden=24), folder)
    return folder


@pytest.fixture
def small(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "small")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: _record(folder, layers="0-"), "are no indices"),
        (lambda folder: _record(folder, layers=3), "not a text"),
        (lambda folder: _record(folder, more=1), "more"),
        (lambda folder: _record(folder, layers="0-1"), "2 layers of 24 channels"),
        (lambda folder: _record(folder, size=31), "none of a stream of 31"),
        (lambda folder: _record(folder, basis=None, channels="0-22,32"), "none of a stream of 32"),
        (lambda folder: _record(folder, basis=None), "32 channels"),
        (lambda folder: shutil.rmtree(folder / FOLDER), "is missing"),
        (lambda folder: _flip(folder / FOLDER / "basis.safetensors"), "is damaged"),
    ],
)
def test_a_damaged_record_is_told(damage: Any, says: str, small: Path) -> None:
    damage(small)
    with pytest.raises(MinitronError, match=says):
        told_of(small)


def _record(folder: Path, **told: Any) -> None:
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, record | {"stream": [record["stream"][0] | told]})


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
