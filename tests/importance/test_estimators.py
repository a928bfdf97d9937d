"""Estimators of channels: each against sums over recorded activations and weights in float64, and how one is chosen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_importance import (
    ATTENTION,
    CHOSEN,
    EXPERTS,
    MAMBA,
    MLP,
    MOE,
    SEQUENCES,
    TOKENS,
    Array,
    blocks_of,
    close,
    loaded,
    quick,
    record,
    slow_importance,
    slow_routing,
)
from transformers import PreTrainedModel

import pipeline.chain
from cli import app
from importance.score.calibrate import calibrate, score_model
from importance.score.clock import PARTS
from importance.score.estimators import DEFAULTS, ESTIMATORS
from importance.score.gradients import run_and_return
from importance.score.observe import importance, observing
from importance.score.options import ScoringOptions
from importance.score.totals import Totals
from minitron.cut.scores import Key, load_scores
from minitron.errors import MinitronError

WEIGHED = ("contribution", "flap", "magnitude")


def slow_scores(name: str, activations: Array, norms: Array) -> Array:
    """[S, T, C] activations, [C] norms of weights -> [C]."""
    by_name = {
        "activation": lambda: slow_importance(activations),
        "contribution": lambda: slow_importance(activations) * norms,
        "flap": lambda: np.sqrt(norms**2 * activations.reshape(-1, activations.shape[-1]).var(0)),
        "magnitude": lambda: norms,
    }
    return by_name[name]()


def weight_of(model: PreTrainedModel, name: str) -> Array:
    weight: Array = model.get_parameter(name).detach().double().numpy()
    return weight


def columns(weight: Array) -> Array:
    """[out, in] -> [in]: L2 norms."""
    return np.array([np.sqrt(sum(value**2 for value in weight[:, place])) for place in range(weight.shape[1])])


@pytest.mark.parametrize("name", ["activation", *WEIGHED])
def test_channels_read_by_one_linear(name: str, tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    found = quick(model, spec, blocks, estimator=name).importance
    readers: dict[Key, str] = {("ffn", layer): f"model.layers.{layer}.mixer.down_proj" for layer in MLP}
    readers |= {("shared_ffn", layer): f"model.layers.{layer}.mixer.shared_experts.down_proj" for layer in MOE}
    for key, reader in readers.items():
        inside = record(model, blocks, reader)[reader][0].reshape(SEQUENCES, TOKENS, -1)
        close(found[key], slow_scores(name, inside, columns(weight_of(model, f"{reader}.weight"))))
    for layer in ATTENTION:
        reader = f"model.layers.{layer}.mixer.o_proj"
        norms = columns(weight_of(model, f"{reader}.weight"))
        channels = slow_scores(name, record(model, blocks, reader)[reader][0], norms).reshape(4, 12)
        close(found["query_head", layer], np.sqrt((channels**2).sum(1)))


@pytest.mark.parametrize("name", WEIGHED)
def test_llama(name: str, tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of()
    found = quick(model, spec, blocks, estimator=name).importance
    for layer in range(4):
        mlp, attention = (f"model.layers.{layer}.{part}" for part in ("mlp.down_proj", "self_attn.o_proj"))
        seen = record(model, blocks, mlp, attention)
        close(found["ffn", layer], slow_scores(name, seen[mlp][0], columns(weight_of(model, f"{mlp}.weight"))))
        norms = columns(weight_of(model, f"{attention}.weight"))
        channels = slow_scores(name, seen[attention][0], norms).reshape(4, 12)
        close(found["query_head", layer], np.sqrt((channels**2).sum(1)))


@pytest.mark.parametrize("name", WEIGHED)
def test_mamba_channels_by_the_rows_that_make_them(name: str, tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    found = quick(model, spec, blocks, estimator=name).importance
    for layer in MAMBA:
        maker = f"model.layers.{layer}.mixer.in_proj"
        out = record(model, blocks, maker)[maker][-1][..., 80:160]
        norms = columns(weight_of(model, f"{maker}.weight")[80:160].T)
        close(found["mamba_channel", layer].ravel(), slow_scores(name, out, norms))


@pytest.mark.parametrize("name", WEIGHED)
def test_latent_channels(name: str, tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    blocks = blocks_of()
    found = quick(model, spec, blocks, estimator=name).importance
    for layer in MOE:
        at = f"model.layers.{layer}.mixer."
        seen = record(model, blocks, at + "fc1_latent_proj", at + "fc2_latent_proj")
        into = seen[at + "fc1_latent_proj"][-1].reshape(SEQUENCES, TOKENS, 16)
        out = seen[at + "fc2_latent_proj"][0].reshape(SEQUENCES, TOKENS, 16)
        # All experts read the same latent channels.
        up = weight_of(model, at + "experts.up_proj").reshape(EXPERTS * 24, 16)
        close(found["latent_in", layer], slow_scores(name, into, columns(up)))
        close(
            found["latent_out", layer], slow_scores(name, out, columns(weight_of(model, at + "fc2_latent_proj.weight")))
        )


@pytest.mark.parametrize("name", WEIGHED)
@pytest.mark.parametrize("starved", [False, True])
def test_channels_of_experts_by_their_own_tokens(name: str, starved: bool, tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    if starved:
        for layer in MOE:
            # No token is sent to expert 1.
            model.get_submodule(f"model.layers.{layer}.mixer.gate").get_buffer("e_score_correction_bias")[1] = -3
    by_activation = quick(model, spec, blocks).importance
    found = quick(model, spec, blocks, estimator=name).importance
    for layer in MOE:
        mixer = f"model.layers.{layer}.mixer"
        states = record(model, blocks, mixer)[mixer][0]
        chosen, _ = slow_routing(model, layer, states)
        up, down = weight_of(model, f"{mixer}.experts.up_proj"), weight_of(model, f"{mixer}.experts.down_proj")
        for expert in range(EXPERTS):
            own = [
                np.maximum(up[expert] @ states[sample, token], 0) ** 2
                for sample in range(SEQUENCES)
                for token in range(TOKENS)
                for place in range(CHOSEN)
                if chosen[sample, token, place] == expert
            ]
            assert bool(own) != (starved and expert == 1)
            norms = columns(down[expert])
            variance = np.var(own, axis=0) if own else np.zeros(24)
            expected = {
                "contribution": by_activation["expert_ffn", layer][expert] * norms,
                "flap": norms * np.sqrt(variance),
                "magnitude": norms,
            }
            close(found["expert_ffn", layer][expert], expected[name])


@pytest.mark.parametrize("name", WEIGHED)
def test_hidden_channels_and_whole_experts_stay_as_they_are(name: str, tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    plain, other = (quick(model, spec, blocks_of(), estimator=each) for each in ("activation", name))
    for key in [("hidden", None), *(("expert", layer) for layer in MOE)]:
        assert (plain.importance[key] == other.importance[key]).all()
    assert all((plain.energy[gain] == other.energy[gain]).all() for gain in plain.energy)


def test_the_default_is_the_best_of_every_axis(tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    by_axis = score_model(model, spec, blocks_of(), ScoringOptions(layers="none", batch_size=2))
    assert by_axis.settings["estimator"] == "best"
    apart = {name: quick(model, spec, blocks_of(), estimator=name).importance for name in ("activation", "surgeon")}
    assert all(estimator is ESTIMATORS["surgeon"] for estimator in DEFAULTS.values())
    assert set(DEFAULTS) == {"ffn", "shared_ffn", "expert_ffn", "query_head"}
    for key, values in by_axis.importance.items():
        assert (values == apart["surgeon" if key[0] in DEFAULTS else "activation"][key]).all()


def test_without_second_moments_the_default_is_activation(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    best = score_model(model, spec, blocks_of(), ScoringOptions(layers="none", batch_size=2, refit=False))
    plain = quick(model, spec, blocks_of(), refit=False)
    for key, values in best.importance.items():
        assert (values == plain.importance[key]).all()
    with pytest.raises(MinitronError, match="needs second moments"):
        quick(model, spec, blocks_of(), estimator="surgeon", refit=False)


def test_activation_is_what_it_was_named_for(tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    default, named = (quick(model, spec, blocks_of(), **options) for options in ({}, {"estimator": "activation"}))
    settings, others = ({**scores.settings, PARTS: list(scores.settings[PARTS])} for scores in (default, named))
    assert settings == others and settings["estimator"] == "activation"
    for key, values in default.importance.items():
        assert (values == named.importance[key]).all()
    # The same operations, but for the order in which fp32 numbers are added up.
    seen: list[torch.Tensor] = []
    reader = model.get_submodule("model.layers.4.mixer.down_proj")
    handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    quick(model, spec, blocks_of())
    handle.remove()
    squares = sum((part.abs().sum(1) / TOKENS).double().square().sum(0) for part in seen)
    assert isinstance(squares, torch.Tensor)
    np.testing.assert_allclose(default.importance["ffn", 4], squares.sqrt().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_streaming_equals_one_batch(name: str, tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    whole, *parts = (
        quick(model, spec, blocks_of(), estimator=name, batch_size=size).importance for size in (SEQUENCES, 1, 2)
    )
    for part in parts:
        assert part.keys() == whole.keys()
        for key, values in whole.items():
            assert (values >= 0).all() and values.max() > values.min()
            np.testing.assert_allclose(part[key], values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_memory_does_not_grow_with_the_samples(name: str, tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    totals, sizes = Totals(), []
    with observing(model, spec, totals, estimator=ESTIMATORS[name]):
        for seed in range(3):
            ids = torch.from_numpy(blocks_of(2, seed=seed))
            if ESTIMATORS[name].gradients:
                run_and_return(model, ids)
            else:
                model.base_model(input_ids=ids)
            sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in totals.sums.values()))
    assert len(set(sizes)) == 1
    assert importance(spec, totals, estimator=ESTIMATORS[name])["ffn", 4].shape == (56,)


def test_flap_of_a_constant_far_from_zero_is_nothing() -> None:
    totals, flap = Totals(), ESTIMATORS["flap"]
    activations = torch.full((2, 8, 3), 1000.0)
    activations[..., 1] += torch.linspace(-1e-2, 1e-2, 16).view(2, 8)
    flap.see(totals, "here", activations, lambda seen: seen)
    flap.see_weights(totals, "here", torch.tensor([[1.0, 3.0, 2.0], [0.0, 4.0, 2.0]]), (0,))
    found = flap.scores(totals, "here", (3,), np.random.default_rng(0))
    assert found[0] == found[2] == 0
    # fp32 holds numbers near 1000 to 6e-5; what it holds is judged to the last digits that float64 sums leave.
    np.testing.assert_allclose(found[1], 5 * activations[..., 1].double().std(correction=0), rtol=1e-4)


def test_chance_follows_the_seed(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    one, same, other = (quick(model, spec, blocks_of(1), estimator="random", seed=seed) for seed in (3, 3, 4))
    assert one.settings["estimator"] == "random" and one.settings["seed"] == 3
    # Its numbers owe nothing to the text.
    unlike = quick(model, spec, blocks_of(2, seed=9), estimator="random", seed=3)
    for key, values in one.importance.items():
        if key[0] == "expert":
            continue
        assert (values == same.importance[key]).all() and (values == unlike.importance[key]).all()
        assert (values != other.importance[key]).all()
    first, second = (one.importance["query_head", layer] for layer in ATTENTION)
    assert (first != second).all()
    assert 0.3 < one.importance["expert_ffn", 1].mean() < 0.7


def test_an_unknown_estimator(tiny_llama: Path, short_text: Path) -> None:
    sentence = (
        r"^there is no estimator 'worst'; use one of best, activation, contribution, surgeon, fisher, flap, magnitude, "
        r"taylor, random\.$"
    )
    with pytest.raises(MinitronError, match=sentence):
        calibrate(tiny_llama, short_text, ScoringOptions(estimator="worst"))
    with pytest.raises(MinitronError, match=sentence):
        quick(*loaded(tiny_llama), blocks_of(1), estimator="worst")


def test_the_command_line_knows_them_all(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", str(tiny_llama), "--data", str(short_text), "-o", str(output), "--sequence-length", "32"]
    line += ["--samples", "2", "--layer-scores", "none", "--device", "cpu", "--dtype", "fp32", "--json"]
    assert app.run([*line, "--estimator", "flap", "--seed", "5"]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]
    assert (told["estimator"], told["seed"]) == ("flap", 5)
    found = load_scores(output)
    assert found.settings["estimator"] == "flap"
    same = calibrate(
        tiny_llama,
        short_text,
        ScoringOptions(samples=2, sequence_length=32, layers="none", dtype="fp32", estimator="flap"),
        device="cpu",
    )
    assert (found.importance["ffn", 0] == same.importance["ffn", 0]).all()
    capsys.readouterr()
    assert app.run([*line, "--overwrite", "--estimator", "worst"]) == 2
    assert f"use one of {', '.join(['best', *ESTIMATORS])}." in capsys.readouterr().err


def test_prune_and_compress_pass_it_on(
    tiny_llama: Path,
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scoring = ["--data", str(short_text), "--samples", "2", "--sequence-length", "32", "--dtype", "fp32"]
    scoring += ["--layer-scores", "none", "--estimator", "random", "--seed", "7", "--device", "cpu"]
    small = tmp_path / "small"
    cut = ["prune", str(tiny_llama), "-o", str(small), "--set", "intermediate_size=40", "--json"]
    assert app.run([*cut, *scoring]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]["scoring"]
    assert (told["estimator"], told["seed"]) == ("random", 7)
    # The channels kept are those that the very same dice choose.
    model, spec = loaded(tiny_llama)
    worth = quick(model, spec, blocks_of(1), estimator="random", seed=7).importance["ffn", 0]
    kept = np.sort(np.argsort(-worth)[:40])
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(weight_of(loaded(small)[0], name), weight_of(model, name)[kept])

    def stop(request: Any, *rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.chain.STEPS, "plan", (pipeline.chain.STEPS["plan"][0], stop))
    folder = tmp_path / "run"
    compress = ["compress", str(tiny_llama), "-o", str(folder), "--budget", "200000", "--context", "32"]
    assert app.run([*compress, "--no-speed", *scoring]) == 130
    settings = load_scores(folder / "scores.safetensors").settings
    assert (settings["estimator"], settings["seed"]) == ("random", 7)
