"""Caches in other formats: rounded where and when engines store them, by transformers' own cache and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from family_sizes import FAMILY_SIZES
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cli.app import run
from minitron.errors import MinitronError
from minitron.measure import caches
from minitron.measure.cache_options import CacheOptions
from minitron.measure.caches import CacheQuality, Simulated, checkpoint_scales, measure_caches, require_kept
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.backbone import backbone
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.quantise.rows import rounded

STATEFUL = ["nemotron_h", "mamba", "mamba2", "jamba", "falcon_h1", "zamba2", "qwen3_next", "kimi_linear", "olmo_hybrid"]
CACHED = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "nemotron_h", "gemma4_text"]


def some_text(sequences: int = 3, tokens: int = 12) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 30, (sequences, tokens))


def measured(folder: Path, blocks: NDArray[np.int64], **options: Any) -> list[CacheQuality]:
    model, asked = load_model(folder, dtype=torch.float32), CacheOptions(**options)
    return list(measure_caches(model, folder, require_kept(folder, read_spec(folder), asked), blocks, asked))


def int8_rows(rows: Tensor) -> Tensor:
    """[..., C]: one scale a row, whose largest number goes to 127."""
    step = rows.abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, (rows / step).round() * step, rows)


@torch.no_grad()
def decoded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B, T, H]: token by token, every recurrent state in int8, in plain code."""
    cache, found = DynamicCache(config=model.config), []
    for place in range(ids.shape[1]):
        found.append(backbone(model)(input_ids=ids[:, place : place + 1], past_key_values=cache).last_hidden_state)
        for layer in cache.layers:
            for state in getattr(layer, "recurrent_states", {}).values():
                state.copy_(int8_rows(state))
    return torch.cat(found, 1)


def test_a_state_is_rounded_after_every_token(tiny_hybrid: Path) -> None:
    model, ids = load_model(tiny_hybrid, dtype=torch.float32), torch.from_numpy(some_text())
    simulated = Simulated(read_spec(tiny_hybrid), {}, CacheOptions(ssm_state="int8"), stepwise=True)
    with torch.no_grad():
        found = simulated.read(model, ids)
    torch.testing.assert_close(found, decoded(model, ids))
    plain = Simulated(read_spec(tiny_hybrid), {}, CacheOptions(), stepwise=True)
    assert not torch.allclose(found, plain.read(model, ids), atol=1e-6)


# In fp32 the noise of matmuls of other shapes can move a number across the middle between two steps of int8; DeepSeek's
# router computes in fp32 whatever the rest does.
@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("llama", torch.float64), ("gemma2", torch.float64), ("deepseek_v3", torch.float32)],
)
def test_keys_and_values_in_one_pass_are_those_of_decoding(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_models.save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][0])
    model, ids = load_model(folder, dtype=torch.float32).to(dtype), torch.from_numpy(some_text())
    with torch.no_grad():
        once, stepwise = (
            Simulated(read_spec(folder), {}, CacheOptions(kv="int8"), stepwise=step).read(model, ids)
            for step in (False, True)
        )
    torch.testing.assert_close(once, stepwise, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_is_cached_is_what_torch_rounds(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's keys, rotated, and values, with the scales of the checkpoint."""
    model, ids = load_model(tiny_llama, dtype=torch.float32), torch.from_numpy(some_text())
    plain = DynamicCache(config=model.config)
    backbone(model)(input_ids=ids, past_key_values=plain)
    held: list[tuple[Tensor, Tensor]] = []
    update = DynamicCache.update

    def spy(self: Any, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> Any:
        held.append((keys, values))
        return update(self, keys, values, *rest, **more)

    monkeypatch.setattr(DynamicCache, "update", spy)
    Simulated(read_spec(tiny_llama), {0: (0.5, 2.0)}, CacheOptions(kv="fp8"), stepwise=False).read(model, ids)
    keys, values = held[0]
    assert torch.equal(keys, (plain.layers[0].keys / 0.5).to(torch.float8_e4m3fn).float() * 0.5)
    assert torch.equal(values, (plain.layers[0].values / 2).to(torch.float8_e4m3fn).float() * 2)


@pytest.mark.parametrize("model_type", STATEFUL)
def test_states_of_every_kind(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan counts as many scales as there are rows in what is rounded, and as many numbers."""
    folder = tiny_models.save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][0])
    spec, model = read_spec(folder), load_model(folder, dtype=torch.float32)
    seen: list[Tensor] = []

    def spy(rows: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(rows)
        return rounded(rows, *rest, **more)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(caches, "rounded", spy)
        Simulated(spec, {}, CacheOptions(ssm_state="int8"), stepwise=True).read(
            model, torch.from_numpy(some_text(1, 1))
        )
    rows, numbers = sum(state[..., 0].numel() for state in seen), sum(state.numel() for state in seen)
    assert rows > 0
    assert footprint(spec, workload_of(spec, 1, ssm_state="int8")).ssm_state == numbers + 4 * rows
    near, drawn = measured(folder, some_text(2, 6), ssm_state="int8")
    assert [near.rounding, drawn.rounding] == ["nearest", "stochastic"]
    assert near.quality.kl_to_teacher != drawn.quality.kl_to_teacher


@pytest.mark.parametrize("model_type", CACHED)
def test_keys_and_values_of_every_kind(model_type: str, tmp_path: Path) -> None:
    folder = tiny_models.save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][0])
    kl = {
        kv: measured(folder, some_text(2, 8), kv=kv)[0].quality.kl_to_teacher for kv in ("fp32", "bf16", "int8", "fp8")
    }
    assert kl["fp32"] == 0.0
    assert all(value is not None for value in kl.values())
    assert 0 < kl["bf16"] < kl["int8"] < kl["fp8"]  # type: ignore[operator]


def test_numbers_that_fp16_does_not_hold_are_told(tiny_hybrid: Path) -> None:
    """Mamba layers whose inputs are 10,000 times as large: states of more than 65,504."""
    model = load_model(tiny_hybrid, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith("mixer.conv1d.weight"):
            weight.mul_(1e4)
    asked = CacheOptions(ssm_state="fp16", rounding="nearest")
    with pytest.raises(MinitronError, match="larger than fp16 holds; choose --ssm-state bf16"):
        list(measure_caches(model, tiny_hybrid, read_spec(tiny_hybrid), some_text(), asked))


def test_fp32_states_cost_nothing(tiny_hybrid: Path) -> None:
    (found,) = measured(tiny_hybrid, some_text(), ssm_state="fp32", kv="fp32")
    assert found.quality.kl_to_teacher == 0.0
    assert found.perplexity_ratio == found.quality.top1_agreement == 1.0


def test_the_seed_is_that_of_states_alone(tiny_hybrid: Path) -> None:
    def kl(**options: Any) -> list[float | None]:
        return [one.quality.kl_to_teacher for one in measured(tiny_hybrid, some_text(), **options)]

    assert kl(ssm_state="int8", seed=1)[0] == kl(ssm_state="int8", seed=2)[0]
    assert kl(ssm_state="int8", seed=1)[1] != kl(ssm_state="int8", seed=2)[1]
    assert kl(ssm_state="int8", rounding="stochastic", seed=1) == kl(ssm_state="int8", seed=1)[1:]
    assert len(kl(kv="int8")) == 1


def test_a_checkpoint_tells_the_scales_of_its_keys_and_values(tiny_hybrid: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert checkpoint_scales(tiny_hybrid) == {}
    folder = tmp_path / "scaled"
    folder.mkdir()
    tensors = load_file(tiny_hybrid / "model.safetensors")
    tensors["backbone.layers.3.mixer.k_proj.k_scale"] = torch.tensor(2.0)
    tensors["backbone.layers.3.mixer.v_proj.v_scale"] = torch.tensor([0.5])
    save_file(tensors, folder / "model.safetensors")
    assert checkpoint_scales(folder) == {3: (2.0, 0.5)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv": "int4"}, "--kv cannot be int4; choose fp32, bf16"),
        ({"kv": "q8_0"}, "--kv cannot be q8_0; choose fp32, bf16, fp16, fp8, nvfp4, int8"),
        ({"ssm_state": "nvfp4"}, "--ssm-state cannot be nvfp4; choose"),
        ({"kv": "fp8", "rounding": "nearest"}, "--state-rounding says how states are rounded; add --ssm-state int8"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        CacheOptions(**options)


def test_a_model_without_what_is_to_be_rounded(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="keeps no recurrent states; leave out --ssm-state"):
        measured(tiny_llama, some_text(), ssm_state="int8")
    mamba = tiny_models.save_family(tmp_path / "mamba", "mamba2", **FAMILY_SIZES["mamba2"][0])
    with pytest.raises(MinitronError, match="keeps no keys and values; leave out --kv"):
        measured(mamba, some_text(), kv="int8")


def test_a_cache_of_other_numbers_than_engines_keep_is_told(tmp_path: Path) -> None:
    folder = tiny_models.save_family(tmp_path / "model", "deepseek_v32", **FAMILY_SIZES["deepseek_v32"][0])
    with pytest.raises(MinitronError, match="caches 24 numbers of a token in layer 0, where engines keep 38"):
        measured(folder, some_text(), kv="int8")


def test_a_person_asks(tiny_hybrid: Path, short_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    arguments = ["eval", str(tiny_hybrid), "--text", str(short_text), "--sequence-length", "16", "--samples", "2"]
    arguments += ["--no-speed", "--dtype", "fp32", "--kv", "fp8", "--ssm-state", "int8"]
    assert run([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"].values()
    assert [cache["rounding"] for cache in found["caches"]] == ["nearest", "stochastic"]
    for cache in found["caches"]:
        assert (cache["kv"], cache["ssm_state"]) == ("fp8", "int8")
        assert cache["kl"] > 0
        assert cache["perplexity_ratio"] == pytest.approx(cache["perplexity"] / cache["plain_perplexity"])
    assert run([*arguments, "--state-rounding", "nearest"]) == 0
    shown = capsys.readouterr().out
    assert "KV fp8, states int8 nearest: KL (nats)" in shown
    assert "stochastic" not in shown
    assert "token by token" in " ".join(shown.split())
    assert run([*arguments[:-2], "--ssm-state", "int4"]) == 2
