"""The residual stream in another basis: the same model, and what can be left out of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import add_mtp, logits
from safetensors.torch import load_file, save_file

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from minitron.cut.basis import Basis
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan, beside, load_plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.rotation import norms_read, reads_stream
from minitron.cut.scores import Scores, load_scores
from minitron.cut.selection import STREAM
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.dims import axes_of
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.kept_importance import kept_importance

FIXTURES = ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"]


def orthonormal(size: int, kept: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0][:, :kept]


def with_epsilon(folder: Path, epsilon: float = 1e-12) -> None:
    """Beside a mean over fewer channels a fixed epsilon weighs differently, which is no fault of the cut."""
    config = json.loads((folder / "config.json").read_text())
    config |= {key: epsilon for key in ("layer_norm_epsilon", "rms_norm_eps") if key in config}
    (folder / "config.json").write_text(json.dumps(config))


def into_subspace(folder: Path, spec: ModelSpec, basis: np.ndarray) -> None:
    """Let nothing be written to the stream but what lies in the span of `basis`."""
    projector = torch.from_numpy(basis @ basis.T).float()
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        rule, _ = spec.find(name)
        if rule.component == "embedding":
            tensors[name] = tensor @ projector
        elif "hidden" in axes_of(rule.dims[0]) and not reads_stream(rule):
            tensors[name] = projector @ tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def token_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (4, 48))


def scores_of(folder: Path, spec: ModelSpec) -> Scores:
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    return score_model(model, spec, token_ids(), ScoringOptions(layers="none"))


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_rotation_changes_nothing(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    parent = request.getfixturevalue(fixture)
    spec = read_spec(parent)
    norms = {tensor.name: (1.0,) for tensor in spec.expected() if reads_stream(tensor.rule)}
    plan = Plan(spec.fingerprint, {}, tuple(range(len(spec.layers))), {STREAM: Basis(orthonormal(32, 32))}, norms)
    prune(parent, plan, tmp_path / "turned")
    torch.testing.assert_close(logits(tmp_path / "turned"), logits(parent), rtol=1e-4, atol=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (parent, tmp_path / "turned"))
    gains = [name for name in after if reads_stream(spec.untied().find(name)[0])]
    assert len(gains) == len(norms) and all((after[name] == 1).all() for name in gains)
    assert not any(torch.allclose(after[name], tensor) for name, tensor in before.items() if tensor.shape[-1] == 32)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_directions_that_nothing_is_written_to_are_not_missed(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(request.getfixturevalue(fixture), parent)
    with_epsilon(parent)
    spec = read_spec(parent)
    into_subspace(parent, spec, orthonormal(32, 24))
    scores = scores_of(parent, spec)
    plan = make_plan(spec, {"hidden_size": 24}, tuple(range(len(spec.layers))), scores, rotate=True)
    result = prune(parent, plan, tmp_path / "small")
    assert result.parameters == plan.parameters == read_spec(tmp_path / "small").parameters().total
    torch.testing.assert_close(logits(tmp_path / "small"), logits(parent), rtol=1e-3, atol=1e-3)
    # The best channels alone could not do it.
    selected = make_plan(spec, {"hidden_size": 24}, plan.layers, scores, rotate=False)
    prune(parent, selected, tmp_path / "selected")
    assert (logits(tmp_path / "selected") - logits(parent)).abs().max() > 0.1
    # In memory the same.
    model = load_model(parent, dtype=torch.float32, device=torch.device("cpu"))
    small = cut_model(model, spec, plan)
    for name, tensor in load_model(tmp_path / "small", dtype=torch.float32).state_dict().items():
        assert (small.state_dict()[name] == tensor).all(), name


@pytest.mark.parametrize("fixture", ["tiny_hybrid", "tiny_llama_tied"])
def test_the_covariance_is_that_of_the_normalised_stream(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    spec = read_spec(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> object:
        return lambda module, args: seen.update({name: args[0]})

    for tensor in spec.expected():
        if reads_stream(tensor.rule):
            name = tensor.name.removesuffix(".weight")
            model.get_submodule(name).register_forward_pre_hook(note(name))
    found = scores_of(folder, spec).covariance[STREAM]
    with torch.no_grad():
        model(torch.from_numpy(token_ids()))
    total, whole = np.zeros((32, 32)), 0.0
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, stream in seen.items():
        at = name.rpartition(".")[0]
        readers = [
            tensor
            for other, tensor in state.items()
            if other.startswith(at + ".") and tensor.ndim > 1 and tensor.shape[-1] == 32 and "down" not in other
        ]
        # In a Llama layer two norms stand at one level: attention reads the first, the MLP the second.
        if fixture == "tiny_llama_tied" and "layers" in name:
            part = "self_attn.qkv" if "input" in name else "mlp.gateup"
            readers = [
                tensor
                for other, tensor in state.items()
                if other.startswith(f"{at}.{part.split('.')[0]}.") and other.split(".")[-2].split("_")[0] in part
            ]
        if "layers" not in name:
            readers = [state["lm_head.weight"]]
        gain = state[name + ".weight"]
        squares = sum((tensor * gain).square().sum().item() * (2 / 6 if tensor.ndim == 3 else 1) for tensor in readers)
        states = stream.flatten(0, 1)[::8]
        states = states / states.square().mean(-1, keepdim=True).sqrt()
        total += np.sqrt(squares) * (states.T @ states).numpy()
        whole += np.sqrt(squares) * len(states)
    np.testing.assert_allclose(found, total / whole, rtol=1e-4, atol=1e-5)
    assert np.trace(found) == pytest.approx(32)


def test_every_linear_that_reads_the_stream_is_known(tiny_hybrid: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    add_mtp(parent, {})
    spec = read_spec(parent)
    read = {
        rule.name: [norm.name for norm in norms]
        for rules in spec.rules.values()
        for rule, norms in norms_read(rules).items()
    }
    assert read["mtp.layers.0.eh_proj.weight"] == ["mtp.layers.0.enorm.weight", "mtp.layers.0.hnorm.weight"]
    assert read["lm_head.weight"] == ["(model|backbone).norm_f.weight"]
    assert not any(
        "embedding" in name or "down_proj" in name or "o_proj" in name or "out_proj" in name for name in read
    )
    assert sum("mixer.gate.weight" in name for name in read) == 2
    scores = scores_of(parent, spec)
    plan = make_plan(spec, {"hidden_size": 24}, tuple(range(8)), scores)
    assert plan.rotates
    prune(parent, plan, tmp_path / "small")
    assert Checkpoint(tmp_path / "small").headers["mtp.layers.0.eh_proj.weight"].shape == (24, 48)


def test_a_tied_model_is_rotated_on_request_only(tiny_llama_tied: Path) -> None:
    spec = read_spec(tiny_llama_tied)
    scores = scores_of(tiny_llama_tied, spec)
    kept = tuple(range(4))
    assert not make_plan(spec, {"hidden_size": 24}, kept, scores).rotates
    plan = make_plan(spec, {"hidden_size": 24}, kept, scores, rotate=True)
    assert not plan.target(spec).is_tied
    # The output layer that it then has of its own is counted.
    assert plan.parameters == spec.resized({"hidden_size": 24}).parameters().total + 300 * 24
    without = Scores(scores.importance, scores.energy, scores.model, scores.data)
    with pytest.raises(MinitronError, match="no covariance"):
        make_plan(spec, {"hidden_size": 24}, kept, without, rotate=True)


def test_bases_survive_the_disk(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    scores_of(tiny_hybrid, spec).save(tmp_path / "scores.safetensors")
    scores = load_scores(tmp_path / "scores.safetensors")
    plan = make_plan(spec, {"hidden_size": 24, "intermediate_size": 40}, tuple(range(8)), scores)
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    one, other = plan.keep[STREAM], again.keep[STREAM]
    assert isinstance(one, Basis) and isinstance(other, Basis)
    np.testing.assert_allclose(one.matrix, other.matrix, atol=1e-6)
    prune(tiny_hybrid, again, tmp_path / "small")
    share = kept_importance(spec, scores, plan.sizes, plan.layers)[STREAM]
    values = np.linalg.eigvalsh(scores.covariance[STREAM])[::-1]
    assert share == pytest.approx(values[:24].sum() / values.sum())
    with pytest.raises(MinitronError, match="exists already"):
        plan.save(tmp_path / "plan.json")
    beside(tmp_path / "plan.json").write_bytes(b"another")
    with pytest.raises(MinitronError, match="another plan"):
        load_plan(tmp_path / "plan.json")
