"""Scoring layer by layer gives the numbers of scoring in memory, and holds one layer's weights at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.app import run
from importance.score.calibrate import calibrate
from importance.score.options import ScoringOptions
from minitron.arrays import save_arrays, store
from minitron.cut.scores import Scores, load_scores
from minitron.errors import MinitronError
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import EMBEDDING, OUTPUT, LayerwiseModel
from minitron.model.loading import load_model
from minitron.model.spec import read_spec


def same(one: Scores, other: Scores) -> None:
    assert one.importance.keys() == other.importance.keys()
    for key, values in one.importance.items():
        assert np.array_equal(values, other.importance[key]), key
    assert all(np.array_equal(values, other.energy[name]) for name, values in one.energy.items())
    assert one.covariance.keys() == other.covariance.keys()
    for key, matrix in one.covariance.items():
        # The norms of all layers add to the stream's, here batch by batch and there layer by layer.
        slack = 1e-12 if key == ("hidden", None) else 0.0
        assert np.allclose(matrix, other.covariance[key], rtol=slack, atol=slack), key
    assert one.ridges == other.ridges
    assert one.bases.keys() == other.bases.keys()
    for key, parts in one.bases.items():
        assert all(np.array_equal(part, again) for part, again in zip(parts, other.bases[key], strict=True))


@pytest.mark.parametrize("family", ["hybrid", "llama"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layers", ["iterative", "fast"])
def test_scores_are_those_of_the_model_in_memory(
    request: pytest.FixtureRequest, short_text: Path, tmp_path: Path, family: str, dtype: str, layers: str
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    asked = ScoringOptions(samples=5, sequence_length=32, batch_size=2, layers=layers, layer_samples=3, dtype=dtype)  # type: ignore[arg-type]
    whole = calibrate(folder, short_text, asked, device="cpu")
    (tmp_path / "between").mkdir()
    for place in (None, tmp_path / "between"):
        apart = calibrate(folder, short_text, replace(asked, offload=True, offload_folder=place), device="cpu")
        same(whole, apart)
        assert place is None or not list(place.iterdir())
        assert apart.settings["offload"]
    apart.save(tmp_path / "scores.safetensors")
    loaded = load_scores(tmp_path / "scores.safetensors")
    for key, matrix in apart.covariance.items():
        assert np.array_equal(loaded.covariance[key], matrix.astype(np.float32))


@pytest.mark.parametrize("family", ["hybrid", "llama"])
def test_weights_come_and_go(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    spec = read_spec(folder)
    source = LayerwiseModel(folder, spec, dtype=torch.float32, device=torch.device("cpu"))
    state = load_model(folder, dtype=torch.float32, device=torch.device("cpu")).state_dict()
    seen: set[str] = set()
    for part in (EMBEDDING, *range(len(spec.layers)), OUTPUT):
        with source.resident(part):
            there = {name: tensor for name, tensor in source.model.state_dict().items() if not tensor.is_meta}
            assert all(torch.equal(tensor, state[name]) for name, tensor in there.items())
            assert source.bytes_of(part) == sum(tensor.nbytes for tensor in there.values())
            seen |= there.keys()
        assert all(tensor.is_meta for tensor in source.model.state_dict().values())
    assert seen == state.keys()


def test_a_walk_ends_where_the_model_does(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    source = LayerwiseModel(tiny_hybrid, spec, dtype=torch.float32, device=torch.device("cpu"))
    blocks = np.random.default_rng(0).integers(0, spec.sizes["vocab"], (3, 16))
    with torch.inference_mode():
        walk = LayerByLayer(source, blocks, 2, States(tmp_path))
        for layer in range(len(spec.layers)):
            with source.resident(layer):
                assert sum(tokens for _, tokens in walk.go(layer)) == blocks.size
        with source.resident(OUTPUT):
            last = torch.cat([walk.norm(walk.state(batch)) for batch in walk.batches])
        model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
        whole = torch.cat(
            [model.model(input_ids=torch.from_numpy(part)).last_hidden_state for part in (blocks[:2], blocks[2:])]
        )
    assert torch.equal(last, whole)


def test_a_checkpoint_of_another_model_is_refused(tiny_hybrid: Path, tiny_llama: Path) -> None:
    with pytest.raises(MinitronError):
        LayerwiseModel(tiny_hybrid, read_spec(tiny_llama), dtype=torch.float32, device=torch.device("cpu"))


def test_offload_as_it_is_typed(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    arguments = ["score", str(tiny_hybrid), "--data", str(short_text), "-o", str(tmp_path / "scores.safetensors")]
    arguments += ["--sequence-length", "32", "--samples", "2", "--max-dropped", "1", "--dtype", "fp32"]
    assert run([*arguments, "--offload-folder", str(tmp_path / "between")]) == 2
    assert run([*arguments, "--offload", "--offload-folder", str(tmp_path / "between")]) == 0
    assert load_scores(tmp_path / "scores.safetensors").settings["offload"]


def test_arrays_on_disk_are_the_same_numbers(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    first = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    mapped = store(first, tmp_path, "first")
    assert isinstance(mapped, np.memmap)
    assert store(first, None, "first") is first
    arrays = {"first": mapped, "second": np.arange(3.0), "turned": first.T}
    save_arrays(tmp_path / "all.safetensors", arrays, {"note": "ä"})
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
