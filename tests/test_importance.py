"""Importance: every formula against a plain rewrite in float64, on models of random weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from cli import app
from importance.calibrate import calibrate, score_model, spread
from importance.depth import _increasing, removal_scores
from importance.estimators import Totals
from importance.observe import observing
from minitron.errors import MinitronError
from minitron.loading import load_model
from minitron.scores import Scores, load_scores
from minitron.spec import ModelSpec, read_spec

Array = NDArray[np.float64]

SEQUENCES, TOKENS = 5, 24

# What the tiny models are made of, written out so that the rewrites below share nothing with the code under test.
HEADS, GROUPS, EXPERTS, CHOSEN, SCALING = 8, 2, 6, 2, 1.5
MAMBA, ATTENTION, MLP, MOE = (0, 2, 5), (3, 7), (4,), (1, 6)


def blocks_of(count: int = SEQUENCES, *, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 300, (count, TOKENS))


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, ModelSpec]:
    return load_model(folder, dtype=dtype, device=torch.device("cpu")), read_spec(folder)


@contextmanager
def recording(model: nn.Module, *names: str) -> Iterator[dict[str, tuple[Any, ...]]]:
    """name -> (inputs..., output) of those modules in the last forward pass, as numpy float64."""
    seen: dict[str, tuple[Any, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[name] = tuple(
                part.detach().double().numpy() for part in (*args, output) if isinstance(part, torch.Tensor)
            )

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    yield seen
    for handle in handles:
        handle.remove()


def record(model: PreTrainedModel, blocks: NDArray[np.int64], *names: str) -> dict[str, tuple[Array, ...]]:
    with recording(model, *names) as seen, torch.no_grad():
        model(input_ids=torch.from_numpy(blocks), use_cache=False)
    return seen


def slow_importance(activations: Array) -> Array:
    """[S, T, C] -> [C]."""
    samples, tokens, channels = activations.shape
    scores = np.zeros(channels)
    for channel in range(channels):
        for sample in range(samples):
            scores[channel] += (sum(abs(activations[sample, t, channel]) for t in range(tokens)) / tokens) ** 2
    return np.sqrt(scores)


def slow_energy(inputs: Array, groups: int) -> Array:
    """[S, T, C] -> [C]."""
    samples, tokens, channels = inputs.shape
    width, total = channels // groups, np.zeros(channels)
    for sample in range(samples):
        for t in range(tokens):
            for channel in range(channels):
                group = slice(channel // width * width, channel // width * width + width)
                total[channel] += inputs[sample, t, channel] ** 2 / np.mean(inputs[sample, t, group] ** 2)
    return total / (samples * tokens)


def quick(model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64], **options: Any) -> Scores:
    return score_model(model, spec, blocks, **({"layers": "none", "batch_size": 2} | options))


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)


def test_channels_of_mlps_and_heads_of_attention(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    seen = record(model, blocks, *(f"model.layers.{layer}.mixer.o_proj" for layer in ATTENTION))
    seen |= record(model, blocks, *(f"model.layers.{layer}.mixer.down_proj" for layer in MLP))
    seen |= record(model, blocks, *(f"model.layers.{layer}.mixer.shared_experts.down_proj" for layer in MOE))
    for layer in MLP:
        close(scores.importance["ffn", layer], slow_importance(seen[f"model.layers.{layer}.mixer.down_proj"][0]))
    for layer in MOE:
        inside = seen[f"model.layers.{layer}.mixer.shared_experts.down_proj"][0]
        close(scores.importance["shared_ffn", layer], slow_importance(inside))
    for layer in ATTENTION:
        channels = slow_importance(seen[f"model.layers.{layer}.mixer.o_proj"][0]).reshape(4, 12)
        expected = np.array([np.sqrt(sum(value**2 for value in head)) for head in channels])
        close(scores.importance["query_head", layer], expected)


def test_llama(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    norms = ["model.norm"]
    for layer in range(4):
        at = f"model.layers.{layer}."
        norms += [at + "input_layernorm", at + "post_attention_layernorm"]
        seen = record(model, blocks, at + "mlp.down_proj", at + "self_attn.o_proj")
        close(scores.importance["ffn", layer], slow_importance(seen[at + "mlp.down_proj"][0]))
        channels = slow_importance(seen[at + "self_attn.o_proj"][0]).reshape(4, 12)
        close(scores.importance["query_head", layer], np.linalg.norm(channels, axis=1))
    check_norms(scores, record(model, blocks, *norms), norms)
    assert set(scores.energy) == {f"{norm}.weight" for norm in norms}
    assert {axis for axis, _ in scores.importance} == {"hidden", "ffn", "query_head"}


def check_norms(scores: Scores, seen: dict[str, tuple[Array, ...]], norms: list[str]) -> None:
    """Hidden channels and the energy of every norm of the residual stream."""
    squares = sum(slow_importance(seen[norm][-1]) ** 2 for norm in norms)
    close(scores.importance["hidden", None], np.sqrt(squares))
    for norm in norms:
        close(scores.energy[f"{norm}.weight"], slow_energy(seen[norm][0], 1))


def test_hidden_channels_and_energy(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    norms = [f"model.layers.{layer}.norm" for layer in range(8)] + ["model.norm_f"]
    check_norms(scores, record(model, blocks, *norms), norms)
    gated = [f"model.layers.{layer}.mixer.norm" for layer in MAMBA]
    assert set(scores.energy) == {f"{norm}.weight" for norm in [*norms, *gated]}
    seen = record(model, blocks, *gated)
    for norm in gated:
        states, gate, _ = seen[norm]
        close(scores.energy[f"{norm}.weight"], slow_energy(states * gate / (1 + np.exp(-gate)), GROUPS))


def test_energy_of_a_dead_token_is_nothing(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    model.get_input_embeddings().weight[7] = 0
    found = quick(model, spec, np.full((1, 4), 7)).energy["model.layers.0.input_layernorm.weight"]
    assert (found == 0).all()


def test_state_space_input_of_mamba(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    seen = record(model, blocks, *(f"model.layers.{layer}.mixer.in_proj" for layer in MAMBA))
    for layer in MAMBA:
        out = seen[f"model.layers.{layer}.mixer.in_proj"][-1]
        assert out.shape[-1] == 80 + 80 + 32 + 32 + 8
        found = scores.importance["mamba_channel", layer]
        assert found.shape == (HEADS, 10)
        close(found.ravel(), slow_importance(out[..., 80:160]))


def slow_routing(model: PreTrainedModel, layer: int, states: Array) -> tuple[NDArray[np.int64], Array]:
    """[S, T, H] -> [S, T, k] experts and weights: DeepSeek-V3's router, one group."""
    gate = model.get_submodule(f"model.layers.{layer}.mixer.gate")
    weight, bias = (tensor.detach().double().numpy() for tensor in (gate.weight, gate.e_score_correction_bias))
    affinity = 1 / (1 + np.exp(-(states @ weight.T)))
    chosen = np.argsort(-(affinity + bias), axis=-1)[..., :CHOSEN]
    gains = np.take_along_axis(affinity, chosen, -1)
    return chosen, SCALING * gains / gains.sum(-1, keepdims=True)


def slow_experts(model: PreTrainedModel, layer: int, states: Array, inputs: Array) -> tuple[Array, Array]:
    """Scores of experts [E] and of their channels [E, F]; `states` go to the router, `inputs` to the experts."""
    module: Any = model.get_submodule(f"model.layers.{layer}.mixer.experts")
    up, down = (tensor.detach().double().numpy() for tensor in (module.up_proj, module.down_proj))
    chosen, gains = slow_routing(model, layer, states)
    scores, channels = np.zeros(EXPERTS), np.zeros((EXPERTS, up.shape[1]))
    for expert in range(EXPERTS):
        outputs = []
        for sample in range(len(states)):
            own = []
            for t in range(states.shape[1]):
                for place in range(CHOSEN):
                    if chosen[sample, t, place] == expert:
                        inside = np.maximum(up[expert] @ inputs[sample, t], 0) ** 2
                        own.append(np.abs(inside))
                        outputs.append(gains[sample, t, place] * np.linalg.norm(down[expert] @ inside))
            if own:
                channels[expert] += np.mean(own, axis=0) ** 2
        scores[expert] = np.mean(outputs) if outputs else 0
    return scores, np.sqrt(channels)


def check_experts(model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64]) -> Scores:
    scores = quick(model, spec, blocks)
    for layer in MOE:
        states = record(model, blocks, f"model.layers.{layer}.mixer")[f"model.layers.{layer}.mixer"][0]
        latent = model.get_submodule(f"model.layers.{layer}.mixer.fc1_latent_proj")
        with torch.no_grad():
            inputs = latent(torch.from_numpy(states).float()).double().numpy()
        expected, channels = slow_experts(model, layer, states, inputs)
        close(scores.importance["expert", layer], expected)
        close(scores.importance["expert_ffn", layer], channels)
    return scores


def test_experts_by_their_own_tokens(tiny_hybrid: Path) -> None:
    check_experts(*loaded(tiny_hybrid), blocks_of())


def test_the_correction_bias_is_on(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    before = quick(model, spec, blocks_of())
    for layer in MOE:
        # Nearly every token is sent to expert 4, and none to expert 1.
        gate: Any = model.get_submodule(f"model.layers.{layer}.mixer.gate")
        gate.e_score_correction_bias[4] = 3.0
        gate.e_score_correction_bias[1] = -3.0
    after = check_experts(model, spec, blocks_of())
    for layer in MOE:
        assert before.importance["expert", layer][1] > 0
        assert after.importance["expert", layer][1] == 0
        assert (after.importance["expert_ffn", layer][1] == 0).all()
        assert after.importance["expert", layer][4] > 0


def test_latent_channels(tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    blocks = blocks_of()
    scores = check_experts(model, spec, blocks)
    for layer in MOE:
        at = f"model.layers.{layer}.mixer."
        seen = record(model, blocks, at + "fc1_latent_proj", at + "fc2_latent_proj")
        into, out = seen[at + "fc1_latent_proj"][-1], seen[at + "fc2_latent_proj"][0]
        close(scores.importance["latent_in", layer], slow_importance(into.reshape(SEQUENCES, TOKENS, 16)))
        close(scores.importance["latent_out", layer], slow_importance(out.reshape(SEQUENCES, TOKENS, 16)))


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"])
def test_every_axis_that_can_be_cut_is_covered(name: str, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name))
    scores = quick(model, spec, blocks_of(2), layers="fast")
    found = {axis for axis, _ in scores.importance}
    # A head of Mamba is ranked by its channels, a head of keys and values by its query heads; the widths of attention
    # heads and of the state have no score yet.
    implied = {"mamba_head", "mamba_head_dim", "kv_head", "qk_head_dim", "v_head_dim", "ssm_state"}
    assert spec.axes - spec.family.fixed - implied == found - {"mamba_channel", "layer"}
    norms = {tensor.name for tensor in spec.expected() if tensor.rule.norm_group}
    assert set(scores.energy) == norms
    shapes = {tensor.name: tensor.shape for tensor in spec.expected()}
    for name, values in scores.energy.items():
        assert values.shape == shapes[name]
        assert values.mean() == pytest.approx(1, rel=1e-5)


def test_batches_do_not_matter(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    one, other = (quick(model, spec, blocks_of(), layers="fast", batch_size=size) for size in (1, 4))
    for key, values in one.importance.items():
        np.testing.assert_allclose(other.importance[key], values, rtol=1e-4)
    for name, values in one.energy.items():
        np.testing.assert_allclose(other.energy[name], values, rtol=1e-4)


def hooks_of(model: nn.Module) -> int:
    own = sum("forward" in module.__dict__ for module in model.modules())
    return own + sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_observing_changes_nothing(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name), dtype)
    ids = torch.from_numpy(blocks_of())
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with observing(model, spec, Totals(), influence=True):
            assert hooks_of(model) > 0
            observed = model(input_ids=ids).logits
        assert hooks_of(model) == 0
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(observed, plain)


def test_observed_experts_agree_with_every_implementation(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    ids = torch.from_numpy(blocks_of())
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        with torch.no_grad():
            plain = model(input_ids=ids).logits
            with observing(model, spec, Totals()):
                observed = model(input_ids=ids).logits
        torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)


def test_hooks_go_when_the_forward_pass_fails(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    last = model.get_submodule("model.norm_f")

    def fail(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        quick(model, spec, blocks_of())
    with pytest.raises(KeyboardInterrupt):
        removal_scores(model, spec, blocks_of())
    handle.remove()
    assert hooks_of(model) == 0


def test_a_model_in_training_is_put_back(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    model.train()
    with pytest.raises(ValueError, match="eval mode"), observing(model, spec, Totals()):
        pass
    quick(model, spec, blocks_of(1))
    assert model.training


def test_memory_does_not_grow_with_the_samples(tiny_hybrid: Path) -> None:
    """Also where a caller forgets no_grad: the sums keep no graph alive."""
    model, spec = loaded(tiny_hybrid)
    model.requires_grad_(True)
    totals = Totals()
    sizes = []
    with observing(model, spec, totals, influence=True):
        for seed in range(4):
            model.base_model(input_ids=torch.from_numpy(blocks_of(3, seed=seed)))
            kept = list(totals.sums.values())
            assert not any(tensor.requires_grad for tensor in kept)
            # A view would keep the activations alive that it looks at.
            sizes.append((len(kept), sum(tensor.untyped_storage().nbytes() for tensor in kept)))
    assert len(set(sizes)) == 1
    scored = sum(values.size for values in [*quick(model, spec, blocks_of(1)).energy.values()])
    assert sizes[0][1] < 8 * 60 * scored


def log_probabilities(model: PreTrainedModel, blocks: NDArray[np.int64]) -> Array:
    with torch.no_grad():
        logits: Array = model(input_ids=torch.from_numpy(blocks), use_cache=False).logits.double().numpy()
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def slow_removal(model: PreTrainedModel, blocks: NDArray[np.int64], rounds: int) -> list[tuple[int, float]]:
    """(layer, KL) in order of removal, the rest sorted by KL behind: whole models with layers taken out."""
    inner: Any = model.base_model
    whole, layers = log_probabilities(model, blocks), list(inner.layers)
    remaining, order = list(range(len(layers))), []
    for _ in range(rounds):
        losses = {}
        for layer in remaining:
            inner.layers = nn.ModuleList([layers[other] for other in remaining if other != layer])
            part = log_probabilities(model, blocks)
            losses[layer] = float((np.exp(whole) * (whole - part)).sum(-1).mean())
        least = min(losses, key=lambda layer: losses[layer])
        remaining.remove(least)
        order.append((least, losses[least]))
    inner.layers = nn.ModuleList(layers)
    return order + sorted(((layer, losses[layer]) for layer in remaining), key=lambda pair: pair[1])


@pytest.mark.parametrize(("name", "dropped"), [("tiny_hybrid", 3), ("tiny_hybrid", 1), ("tiny_llama", 3)])
def test_layers_removed_one_by_one(name: str, dropped: int, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name))
    blocks = blocks_of(3)
    scores = quick(model, spec, blocks, layers="iterative", max_dropped=dropped)
    expected = slow_removal(model, blocks, dropped)
    found = scores.importance["layer", None]
    assert np.argsort(found).tolist() == [layer for layer, _ in expected]
    floor = 0.0
    for layer, divergence in expected:
        floor = max(floor, divergence)
        assert found[layer] == pytest.approx(floor, rel=1e-3)
    assert scores.settings["max_dropped"] == dropped
    assert scores.settings["layer_samples"] == 3


def test_a_layer_that_does_nothing_goes_first(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    for layer in (4, 7):
        out = {4: "down_proj", 7: "o_proj"}[layer]
        model.get_submodule(f"model.layers.{layer}.mixer.{out}").weight.zero_()
    blocks = blocks_of(2)
    for method, options in (("iterative", {"max_dropped": 2}), ("fast", {})):
        found = quick(model, spec, blocks, layers=method, **options).importance["layer", None]
        assert set(np.argsort(found)[:2].tolist()) == {4, 7}
        assert found[[4, 7]] == pytest.approx(0, abs=1e-6)
        assert found.min() >= 0


def test_layers_are_judged_on_some_of_the_samples(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of(5)
    some = quick(model, spec, blocks, layers="iterative", layer_samples=2)
    assert some.settings["layer_samples"] == 2
    expected, _ = removal_scores(model, spec, blocks[[0, 4]])
    np.testing.assert_allclose(some.importance["layer", None], expected, rtol=1e-4)


def test_half_of_the_layers_are_dropped_unless_told_and_never_all(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of(2)
    assert quick(model, spec, blocks, layers="iterative").settings["max_dropped"] == 2
    assert quick(model, spec, blocks, layers="iterative", max_dropped=99).settings["max_dropped"] == 3


@given(st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_scores_keep_the_order_of_removal(divergences: list[float], random: Any) -> None:
    layers = list(range(len(divergences)))
    random.shuffle(layers)
    found = _increasing(list(zip(layers, divergences, strict=True)))
    # Sixteen bits of a float would lose the order; thirty-two must not.
    assert np.argsort(found.astype(np.float32), kind="stable").tolist() == layers
    highest = np.maximum.accumulate(divergences)
    np.testing.assert_allclose(found[layers], highest, rtol=2e-5, atol=2e-8)


def test_block_influence(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    found = quick(model, spec, blocks, layers="fast").importance["layer", None]
    names = [f"model.layers.{layer}" for layer in range(8)]
    seen = record(model, blocks, *names)
    for layer, name in enumerate(names):
        before, after = seen[name][0].reshape(-1, 32), seen[name][-1].reshape(-1, 32)
        cosines = [
            one @ two / np.linalg.norm(one) / np.linalg.norm(two) for one, two in zip(before, after, strict=True)
        ]
        assert found[layer] == pytest.approx(1 - np.mean(cosines), rel=1e-5, abs=1e-7)


def test_calibrate_reads_a_folder_and_a_text(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    scores = calibrate(
        tiny_hybrid, short_text, samples=4, sequence_length=32, layers="fast", dtype="fp32", device="cpu"
    )
    scores.require(read_spec(tiny_hybrid))
    settings = scores.settings
    assert (settings["samples"], settings["sequence_length"], settings["dtype"]) == (4, 32, "float32")
    assert settings["seconds"] > 0
    scores.save(tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors")
    assert again.importance.keys() == scores.importance.keys()
    for key, values in scores.importance.items():
        assert (again.importance[key] == values).all()


def test_bf16_ranks_as_fp32_does(tiny_hybrid: Path) -> None:
    wide, narrow = (quick(*loaded(tiny_hybrid, dtype), blocks_of()) for dtype in (torch.float32, torch.bfloat16))
    for key, values in wide.importance.items():
        if key[0] in ("hidden", "ffn", "shared_ffn", "query_head", "mamba_channel"):
            np.testing.assert_allclose(narrow.importance[key], values, rtol=0.1, atol=0.02 * values.max())


def test_spread() -> None:
    assert spread(100, 3).tolist() == [0, 50, 99]
    assert spread(2, 16).tolist() == [0, 1]
    assert spread(5, 1).tolist() == [0]


def test_what_a_user_can_mend(tiny_hybrid: Path, tiny_llama: Path, short_text: Path) -> None:
    with pytest.raises(MinitronError, match=r"tokens, less than one sequence of 100000"):
        calibrate(tiny_hybrid, short_text, sequence_length=100_000)
    with pytest.raises(MinitronError, match="longer than the 256 positions"):
        calibrate(tiny_llama, short_text, samples=1, sequence_length=300, device="cpu")
    with pytest.raises(MinitronError, match="no device"):
        calibrate(tiny_llama, short_text, samples=1, sequence_length=32, device="gpu:0")
    model, spec = loaded(tiny_llama)
    with pytest.raises(MinitronError, match="token id 300 and the model has 300 embeddings"):
        quick(model, spec, np.full((1, 4), 300))
    model.get_submodule("model.layers.1.mlp.up_proj").weight[0] = float("nan")
    for layers in ("none", "fast", "iterative"):
        with pytest.raises(MinitronError, match="not finite"):
            quick(model, spec, blocks_of(1), layers=layers)


def test_positions_of_a_model_without_rotary_embeddings_have_no_end(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    assert quick(model, spec, np.full((1, 300), 5)).settings["sequence_length"] == 300


def test_score_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", str(tiny_hybrid), "--data", str(short_text), "-o", str(output), "--sequence-length", "32"]
    line += ["--samples", "4", "--batch-size", "2", "--layer-samples", "2", "--max-dropped", "1", "--device", "cpu"]
    assert app.run([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["output", "inputs", "settings", "results", "seconds"]
    assert told["output"] == str(output)
    results = told["results"]
    assert results["tokens"] == 4 * 32
    assert [row["kind"] for row in results["layers"]] == list("MEM*-ME*")
    assert results["axes"]["expert_ffn"]["places"] == 2 * EXPERTS
    assert results["axes"]["mamba_channel"]["size"] == HEADS * 10
    for row in results["axes"].values():
        assert 0.25 <= row["best_quarter"] <= row["best_half"] <= 1
    load_scores(output).require(read_spec(tiny_hybrid))

    assert app.run(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert app.run([*line, "--overwrite", "--layers", "fast"]) == 0
    seen = capsys.readouterr()
    assert "best quarter" in seen.out and "1 - cosine" in seen.out and str(output) in seen.out
    assert "4 asked for" not in seen.err


def test_a_text_with_fewer_sequences_than_asked_for_is_told(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", str(tiny_llama), "--data", str(short_text), "-o", str(output), "--sequence-length", "256"]
    assert app.run([*line, "--samples", "999", "--layers", "none", "--device", "cpu"]) == 0
    assert "not the 999 asked for" in capsys.readouterr().err
    assert app.run(["score", str(tiny_llama), "--data", str(tmp_path / "none.txt"), "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
