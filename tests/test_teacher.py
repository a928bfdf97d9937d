"""The FP8 teacher: what is stored, what it computes, and how far it drifts from bf16."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from distill import transformer_engine
from distill.fp8 import E4M3, dequantise, fp8_weights, quantise, store_in_fp8, stored_bytes
from distill.teacher import load_teacher
from minitron.errors import MinitronError
from minitron.loading import load_model, load_tokenizer
from minitron.quality import hidden_states
from minitron.text import token_blocks

CPU = torch.device("cpu")


def e4m3_values() -> Tensor:
    """Every finite E4M3 number from its definition: sign, four bits of exponent with bias 7, three of mantissa."""
    values = []
    for code in range(256):
        sign, exponent, mantissa = (-1) ** (code >> 7), code >> 3 & 15, code & 7
        if (exponent, mantissa) != (15, 7):
            scale, leading = (2.0**-6, 0) if exponent == 0 else (2.0 ** (exponent - 7), 1)
            values.append(sign * scale * (leading + mantissa / 8))
    return torch.tensor(values, dtype=torch.float64)


def test_every_number_becomes_the_nearest_e4m3_multiple_of_its_channels_scale() -> None:
    weight = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 5)[:, None]
    weight[1, 2] = 0
    numbers, scale = quantise(weight.bfloat16())
    assert numbers.dtype == E4M3 and numbers.shape == weight.shape and scale.shape == (3, 5, 1)
    exact = weight.bfloat16().double()
    assert (numbers[1, 2].float() == 0).all()
    stored = numbers.double() * scale
    grid = e4m3_values() * scale.double().unsqueeze(-1)
    nearest = (grid - exact.unsqueeze(-1)).abs().amin(-1)
    # The division by the scale rounds in fp32, so that of two grid points almost equally near either may be taken.
    assert ((stored - exact).abs() <= nearest + 1e-6 * exact.abs()).all()
    torch.testing.assert_close(dequantise(numbers, scale).double(), stored, rtol=2**-7, atol=0)


def test_a_channels_largest_number_is_kept_and_never_overflows() -> None:
    weight = torch.tensor([[1e4, -1.0], [3e38, 1e38], [1e-30, -1e-30]])
    numbers, scale = quantise(weight)
    assert numbers.float().abs().amax(-1).tolist() == [448, 448, 448]
    assert torch.isfinite(dequantise(numbers, scale)).all()


def names(folder: Path) -> set[str]:
    return {f"{name}.{weight}" for name, _, weight in fp8_weights(load_model(folder, device=CPU))}


def test_what_goes_to_fp8_in_a_hybrid(tiny_hybrid_latent: Path) -> None:
    # The layers are MEM*-ME*: Mamba 2 and 5 are the last ones before attention.
    experts = [
        "experts.up_proj",
        "experts.down_proj",
        "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight",
    ]
    latent = ["fc1_latent_proj.weight", "fc2_latent_proj.weight"]
    expected = {f"model.layers.0.mixer.{name}.weight" for name in ("in_proj", "out_proj")}
    expected |= {f"model.layers.4.mixer.{name}.weight" for name in ("up_proj", "down_proj")}
    expected |= {f"model.layers.{layer}.mixer.{name}" for layer in (1, 6) for name in experts + latent}
    assert names(tiny_hybrid_latent) == expected


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_llama_tied"])
def test_what_goes_to_fp8_in_a_llama(model: str, request: pytest.FixtureRequest) -> None:
    linears = ("gate_proj", "up_proj", "down_proj")
    expected = {f"model.layers.{layer}.mlp.{name}.weight" for layer in range(4) for name in linears}
    assert names(request.getfixturevalue(model)) == expected


@pytest.mark.parametrize("experts", ["grouped_mm", "eager"])
def test_a_stored_model_computes_with_its_rounded_weights_bit_for_bit(tiny_hybrid: Path, experts: str) -> None:
    model, plain = (load_model(tiny_hybrid, device=CPU) for _ in range(2))
    for each in (model, plain):
        each.config._experts_implementation = experts
    ids = torch.arange(48).view(2, 24) * 5 % tiny_models.VOCAB_SIZE
    with torch.no_grad():
        untouched = hidden_states(plain, ids)
        for _, module, weight in list(fp8_weights(plain)):
            parameter = getattr(module, weight)
            parameter.copy_(dequantise(*quantise(parameter)))
        stored = store_in_fp8(model)
        assert len(stored) == 2 + 2 + 2 * 4
        ours, theirs = hidden_states(model, ids), hidden_states(plain, ids)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, untouched)


def test_a_stored_model_holds_fp8_bytes_and_no_bf16_copy(tiny_hybrid: Path) -> None:
    model = load_model(tiny_hybrid, device=CPU)
    before = stored_bytes(model)
    shapes = [tuple(getattr(module, weight).shape) for _, module, weight in fp8_weights(model)]
    modules = [(module, weight) for _, module, weight in fp8_weights(model)]
    store_in_fp8(model)
    # One byte instead of two for each number, and four more for each channel.
    saved = sum(math.prod(shape) - 4 * math.prod(shape[:-1]) for shape in shapes)
    assert stored_bytes(model) == before - saved
    with torch.no_grad():
        hidden_states(model, torch.zeros(1, 8, dtype=torch.int64))
    assert not any(hasattr(module, weight) for module, weight in modules)

    failing = nn.Linear(4, 4)
    model.model.layers[4].mixer.down_proj = failing  # its input has 56 channels
    with torch.no_grad(), pytest.raises(RuntimeError):
        hidden_states(model, torch.zeros(1, 8, dtype=torch.int64))
    assert not any(hasattr(module, weight) for module, weight in modules if module is not failing)


def test_drift_equals_whole_logits_of_both_models(tiny_hybrid: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_hybrid), short_text, sequence_length=32, samples=5)
    teacher = load_teacher(tiny_hybrid, precision="fp8", device=CPU, blocks=blocks, batch_size=2)
    drift, plain = teacher.drift, load_model(tiny_hybrid, device=CPU)
    assert drift is not None
    ids = torch.from_numpy(blocks)
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(model(ids).logits.double(), -1) for model in (plain, teacher.model))
    assert math.isclose(drift.kl, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel_tol=1e-3)
    assert drift.top1_agreement == float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())
    assert drift.tokens == blocks.size and drift.weights == 2 + 2 + 2 * 4
    assert drift.stored_bytes == stored_bytes(teacher.model) < drift.bf16_bytes == stored_bytes(plain)
    assert 0 < drift.kl < 0.1


def test_a_bf16_teacher_does_not_drift(tiny_llama: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_llama), short_text, sequence_length=32, samples=1)
    teacher = load_teacher(tiny_llama, precision="bf16", device=CPU, blocks=blocks)
    assert teacher.drift is None
    assert not teacher.model.training and not any(weight.requires_grad for weight in teacher.model.parameters())


@pytest.mark.parametrize(("precision", "words"), [("fp4", "bf16, fp8"), ("fp8-te", "use --teacher-precision fp8")])
def test_a_precision_that_cannot_be_had_is_refused(
    tiny_llama: Path, short_text: Path, precision: str, words: str
) -> None:
    blocks = token_blocks(load_tokenizer(tiny_llama), short_text, sequence_length=32, samples=1)
    with pytest.raises(MinitronError, match=words):
        load_teacher(tiny_llama, precision=precision, device=CPU, blocks=blocks)


def test_the_wiring_of_transformer_engine(tiny_hybrid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that computes in bf16 the replaced model gives what it gave before; 24 channels are left alone."""
    rows = []

    class Linear(nn.Linear):
        def __init__(self, wide: int, out: int, *, bias: bool, params_dtype: torch.dtype, device: torch.device) -> None:
            super().__init__(wide, out, bias=bias, dtype=params_dtype, device=device)

        def forward(self, states: Tensor) -> Tensor:
            rows.append(states.shape[0])
            return super().forward(states)

    def context(**_: Any) -> Any:
        return nullcontext()

    engine = SimpleNamespace(Linear=Linear, fp8_model_init=context, fp8_autocast=context)
    monkeypatch.setattr(transformer_engine, "transformer_engine", lambda device: engine)
    model = load_model(tiny_hybrid, device=CPU)
    ids = torch.arange(15).view(1, 15)
    with torch.no_grad():
        before = hidden_states(model, ids)
        replaced = transformer_engine.use_transformer_engine(model)
        after = hidden_states(model, ids)
    # in_proj has 80 + 112 + 8 = 200 rows, the MLP 56 channels, the shared expert 40: of the hybrid nothing else fits.
    assert replaced == ["model.layers.0.mixer.out_proj.weight"]
    assert rows == [16]
    torch.testing.assert_close(after, before, rtol=0, atol=2**-6)
