"""The gain of a norm that averages over fewer channels: the kept channels come out of it as they did.

Exact where all tokens carry the same share of their energy in what is kept, so the inputs here are made so: one token
alone, or tokens that are laid out by hand."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from minitron.cut.basis import Basis
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan, make_plan
from minitron.cut.scores import Scores
from minitron.cut.selection import STREAM
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec


def copy_of(source: Path, folder: Path) -> tuple[Path, ModelSpec]:
    """A copy whose norms have almost no epsilon, which weighs differently in a mean over fewer channels."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {key: 1e-12 for key in ("layer_norm_epsilon", "rms_norm_eps") if key in config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, read_spec(folder)


def loaded(folder: Path) -> PreTrainedModel:
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))


@contextmanager
def recording(model: PreTrainedModel, name: str) -> Iterator[dict[str, torch.Tensor]]:
    """What goes into a module and what comes out."""
    seen: dict[str, torch.Tensor] = {}

    def note(module: torch.nn.Module, given: tuple[Any, ...], out: torch.Tensor) -> None:
        # The gated norm of a Mamba layer is given its gate too.
        gate = given[1] if len(given) > 1 and given[1] is not None else None
        states = given[0].double()
        seen["in"] = states if gate is None else states * torch.nn.functional.silu(gate.double())
        seen["out"] = out.double()

    handle = model.get_submodule(name).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def through(model: PreTrainedModel, name: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    with recording(model, name) as seen, torch.no_grad():
        model(torch.from_numpy(ids))
    return {what: tensor.reshape(-1, tensor.shape[-1]).numpy() for what, tensor in seen.items()}


def cut(folder: Path, spec: ModelSpec, sizes: dict[str, int], ids: np.ndarray) -> tuple[Plan, Scores, PreTrainedModel]:
    scores = score_model(loaded(folder), spec, ids, ScoringOptions(layers="none"))
    plan = make_plan(spec, sizes, tuple(range(len(spec.layers))), scores, rotate=False)
    return plan, scores, cut_model(loaded(folder), spec, plan)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_hybrid"])
def test_kept_channels_leave_the_norm_of_the_stream_as_they_did(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, spec = copy_of(request.getfixturevalue(fixture), tmp_path / "parent")
    # One token's embedding is all that the first norm ever sees.
    ids = np.full((2, 8), 7)
    plan, _, small = cut(folder, spec, {"hidden_size": 12}, ids)
    name = "model.layers.0." + ("input_layernorm" if fixture == "tiny_llama" else "norm")
    kept = plan.keep[STREAM]
    before, after = through(loaded(folder), name, ids), through(small, name, ids)
    np.testing.assert_array_equal(after["in"], before["in"][:, kept])
    np.testing.assert_allclose(after["out"], before["out"][:, kept], rtol=1e-5, atol=1e-7)
    # Nothing would be shown of the energy if the kept channels carried their part of it and no more.
    squares = before["in"][0] ** 2
    share = squares[kept].sum() / squares.sum()
    assert share > 1.3 * 12 / 32
    gain = next(factors for key, factors in plan.gains.items() if key.startswith(f"{name}."))
    assert gain == pytest.approx([np.sqrt(32 / 12 * share)], rel=1e-6)


def test_each_group_of_a_gated_norm_has_the_gain_of_what_it_keeps(tiny_hybrid: Path, tmp_path: Path) -> None:
    folder, spec = copy_of(tiny_hybrid, tmp_path / "parent")
    # Along a sequence the states change, and with them what the channels carry: one token has one share a group.
    ids = np.full((1, 1), 7)
    plan, _, small = cut(folder, spec, {"mamba_num_heads": 2}, ids)
    name = "model.layers.0.mixer.norm"
    before, after = through(loaded(folder), name, ids), through(small, name, ids)
    channels = (np.asarray(plan.keep["mamba_head", 0])[:, None] * 10 + np.arange(10)).ravel()
    np.testing.assert_allclose(after["out"], before["out"][:, channels], rtol=1e-4, atol=1e-6)
    squares = before["in"][0].reshape(2, 40) ** 2
    shares = (before["in"][0][channels].reshape(2, 10) ** 2).sum(1) / squares.sum(1)
    # A quarter of the channels, two groups, two shares.
    assert abs(shares[0] - shares[1]) > 0.1
    assert plan.gains[f"{name}.weight"] == pytest.approx(np.sqrt(4 * shares), rel=1e-5)


def test_kept_directions_leave_the_norm_as_they_did(tiny_llama: Path, tmp_path: Path) -> None:
    folder, spec = copy_of(tiny_llama, tmp_path / "parent")
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0]
    # 48 tokens, each with 0.7 of its energy along one of 8 directions, with either sign, and 0.3 along one of the 24
    # others.  Together they carry 0.7 / 8 along each of the former, which are kept, and 0.3 / 24 along each other one.
    strong, weak = turned[:, :8].T, turned[:, 8:].T
    tokens = np.array(
        [
            np.sqrt(0.7) * sign * strong[place % 8] + np.sqrt(0.3) * weak[place]
            for place in range(24)
            for sign in (1, -1)
        ]
    )
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:48] = torch.from_numpy(5 * tokens).float()
    for tensor in tensors:
        if tensor.endswith(("o_proj.weight", "down_proj.weight")):
            # Nothing is added to the stream, so that every norm sees the same.
            tensors[tensor].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # The covariance is that of every eighth token.
    ids = np.arange(48).repeat(8).reshape(4, 96)
    scores = score_model(loaded(folder), spec, ids, ScoringOptions(layers="none"))
    plan = make_plan(spec, {"hidden_size": 8}, tuple(range(4)), scores, rotate=True)
    basis = plan.keep[STREAM]
    assert isinstance(basis, Basis)
    small = cut_model(loaded(folder), spec, plan)
    for name in ("model.layers.0.input_layernorm", "model.layers.3.post_attention_layernorm", "model.norm"):
        stream = through(loaded(folder), name, ids)["in"]
        whole = stream / np.sqrt((stream**2).mean(1, keepdims=True))
        np.testing.assert_allclose(through(small, name, ids)["out"], whole @ basis.matrix, rtol=1e-4, atol=1e-5)
        assert plan.gains[f"{name}.weight"] == pytest.approx([np.sqrt(32 / 8 * 0.7)], rel=1e-6)
