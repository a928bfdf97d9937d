"""The FP8 teacher: what is stored, what it computes, and how far it drifts from bf16."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from distill.processes import Processes
from distill.recipe import Recipe
from distill.teacher import transformer_engine
from distill.teacher.drift import drift_by_layer
from distill.teacher.e4m3 import E4M3, dequantise, quantise
from distill.teacher.fp8 import fp8_weights, store_in_fp8, stored_bytes
from distill.teacher.fp8_linear import Fp8Linear, takes_sizes
from distill.teacher.kept import Kept, parse_kept
from distill.teacher.loading import load_teacher
from distill.teacher.teacher_source import TeacherSource
from distill.text.data import read_text
from minitron.builtin import HELDOUT, MODEL
from minitron.errors import MinitronError
from minitron.measure import quality
from minitron.measure.quality import hidden_states
from minitron.measure.text import token_blocks
from minitron.model.layerwise import LayerwiseModel
from minitron.model.loading import load_model, load_tokenizer

NANO_30B = "models/Nemotron-3-Nano-30B-A3B.json"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MEM*-ME*, longer than the other teachers here: which layers go to FP8 is told by number."""
    return tiny_models.save_hybrid(tmp_path_factory.mktemp("hybrid") / "model")


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


def convert(model: PreTrainedModel, change: Any) -> int:
    return sum(change(model, name, weight) for name, _, weight in list(fp8_weights(model)))


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
        assert convert(model, store_in_fp8) == 2 + 2 + 2 * 4
        ours, theirs = hidden_states(model, ids), hidden_states(plain, ids)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, untouched)


def test_a_stored_model_holds_fp8_bytes_and_no_bf16_copy(tiny_hybrid: Path) -> None:
    model = load_model(tiny_hybrid, device=CPU)
    before = stored_bytes(model)
    shapes = [tuple(getattr(module, weight).shape) for _, module, weight in fp8_weights(model)]
    modules = [(module, weight) for _, module, weight in fp8_weights(model)]
    convert(model, store_in_fp8)
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


@pytest.mark.parametrize("model", ["tiny_hybrid_latent", "tiny_llama_tied"])
def test_a_teacher_is_never_whole_in_bf16(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(model)
    peaks = []

    def watched(self: LayerwiseModel, placed: Any, last: Any = ()) -> None:
        def and_watch(name: str) -> None:
            peaks.append(here(self.model))
            placed(name)
            peaks.append(here(self.model))

        plain(self, and_watch, last)

    plain = LayerwiseModel.load
    monkeypatch.setattr(LayerwiseModel, "load", watched)
    teacher = load_teacher(folder, precision="fp8", device=CPU, blocks=None).model
    largest = max(parameter.nbytes for parameter in load_model(folder, device=CPU).parameters())
    # The last ones to come stay in bf16: the output layer, where it is not the embedding.
    assert max(peaks) <= stored_bytes(teacher) + largest
    assert here(teacher) == stored_bytes(teacher)
    whole = load_model(folder, device=CPU)
    convert(whole, store_in_fp8)
    expected = dict(whole.named_parameters()) | dict(whole.named_buffers())
    found = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def here(model: PreTrainedModel) -> int:
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta}
    return sum(tensor.nbytes for tensor in tensors.values())


def test_the_bytes_of_nano_30b_in_fp8() -> None:
    published = json.loads((Path(__file__).parents[1] / "reference" / NANO_30B).read_text())["config"]
    config = AutoConfig.for_model(**published)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    before = stored_bytes(model)
    for name, _, weight in list(fp8_weights(model)):
        tensor = model.get_submodule(name).get_parameter(weight)
        before_one = tensor.nbytes
        numbers, scale = quantise(tensor)
        assert numbers.nbytes == before_one // 2 and scale.numel() == tensor.numel() // tensor.shape[-1]
        delattr(model.get_submodule(name), weight)
        model.get_submodule(name).register_parameter(weight, nn.Parameter(numbers, requires_grad=False))
        model.get_submodule(name).register_buffer("scale", scale)
    assert stored_bytes(model) / before < 0.56


def test_what_is_kept_is_read_and_written() -> None:
    assert parse_kept("attention,before-attention") == Kept() == parse_kept(str(Kept()))
    some = parse_kept("attention,3,7-9")
    assert some == Kept(True, False, frozenset({3, 7, 8, 9})) == parse_kept(str(some))
    assert parse_kept("none") == Kept(False, False) == parse_kept(str(Kept(False, False)))
    for typed in ("", "some", "3,none", "3-", "router"):
        with pytest.raises(MinitronError, match="names no part of a teacher"):
            parse_kept(typed)


def test_what_is_kept_stays(tiny_hybrid: Path) -> None:
    model = load_model(tiny_hybrid, device=CPU)

    def layers(keep: Kept) -> set[int]:
        return {int(name.split(".")[2]) for name, _, _ in fp8_weights(model, keep)}

    assert layers(Kept()) == {0, 1, 4, 6}
    assert layers(Kept(before_attention=False)) == {0, 1, 2, 4, 5, 6}
    assert layers(Kept(layers=frozenset({0, 6}))) == {1, 4}
    assert layers(Kept(False, False)) == set(range(8))


def test_the_drift_of_a_layer_is_that_of_its_output(tiny_hybrid: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_hybrid), short_text, sequence_length=32, samples=3)
    found = drift_by_layer(tiny_hybrid, keep=Kept(), device=CPU, blocks=blocks, batch_size=2)
    assert found.keys() == {0, 1, 4, 6} and all(change > 0 for change in found.values())
    # Layer 0 reads the embedding itself.
    outputs = []
    for stored in (False, True):
        model = load_model(tiny_hybrid, device=CPU)
        if stored:
            convert(model, store_in_fp8)
        model.model.layers[0].register_forward_hook(lambda module, given, output: outputs.append(output))
        with torch.no_grad():
            hidden_states(model, torch.from_numpy(blocks))
    before, after = (output.double() for output in outputs)
    wanted = ((after - before).square().sum(-1) / before.square().sum(-1)).sum()
    assert math.isclose(found[0], float(wanted), rel_tol=1e-3)


def test_a_bf16_teacher_does_not_drift(tiny_llama: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_llama), short_text, sequence_length=32, samples=1)
    teacher = load_teacher(tiny_llama, precision="bf16", device=CPU, blocks=blocks)
    assert teacher.drift is None
    assert not teacher.model.training and not any(weight.requires_grad for weight in teacher.model.parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_teacher_computes_as_its_student_does(
    tiny_llama: Path, short_text: Path, tmp_path: Path, precision: Any, dtype: torch.dtype
) -> None:
    recipe = Recipe(steps=1, sequence_length=16, batch_tokens=64, validation_sequences=2, precision=precision)
    folder = tmp_path / "tokens"
    text = read_text(load_tokenizer(tiny_llama), short_text, sequence_length=16, validation_sequences=2, folder=folder)
    source = TeacherSource(tiny_llama, CPU)
    teacher, measured = source.prepare(tiny_llama, text, recipe, None, {}, Processes())
    assert isinstance(teacher, PreTrainedModel) and teacher.dtype == dtype
    found = quality.measure_quality(load_model(tiny_llama, dtype=dtype, device=CPU), text.validation, batch_size=1)
    assert measured["perplexity_teacher"] == pytest.approx(found.perplexity, rel=1e-6 if precision == "fp32" else 1e-3)


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
        replaced = convert(model, transformer_engine.use_transformer_engine)
        after = hidden_states(model, ids)
    # in_proj has 80 + 112 + 8 = 200 rows, the MLP 56 channels, the shared expert 40: of the hybrid nothing else fits.
    assert replaced == 1
    assert isinstance(model.get_submodule("model.layers.0.mixer.out_proj"), transformer_engine.EngineLinear)
    assert rows == [16]
    torch.testing.assert_close(after, before, rtol=0, atol=2**-6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_matmul_in_fp8_is_that_of_rounded_numbers(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(48, 32, bias=bias, dtype=torch.bfloat16)
    # Tokens of very different sizes, and one of zeros.
    states = (torch.randn(2, 5, 48, generator=generator) * torch.logspace(-3, 3, 5)[:, None]).bfloat16()
    states[0, 0] = 0
    with torch.no_grad():
        found = Fp8Linear(linear)(states)
        (x, x_scale), (w, w_scale) = quantise(states), quantise(linear.weight)
        exact = (x.double() * x_scale) @ (w.double() * w_scale).T
        extra = linear.bias.double() if bias else torch.zeros(32, dtype=torch.float64)
    assert found.shape == (2, 5, 32) and found.dtype == torch.bfloat16
    # The product is rounded to bf16, then the sum: where they cancel out, more than the sum's own rounding is left.
    assert ((found.double() - exact - extra).abs() <= 2**-8 * (2 * exact.abs() + extra.abs()) + 1e-6).all()


def test_a_teacher_that_multiplies_in_fp8_drifts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with FP8: its linears round their inputs too, and the rest is as elsewhere."""
    blocks = token_blocks(load_tokenizer(MODEL), HELDOUT, sequence_length=128, samples=8)
    drifts = []
    for able in (lambda linear: False, takes_sizes):
        monkeypatch.setattr("distill.teacher.fp8.multiplies_in_fp8", able)
        teacher = load_teacher(MODEL, precision="fp8", device=CPU, blocks=blocks)
        assert any(isinstance(module, Fp8Linear) for module in teacher.model.modules()) == (able is takes_sizes)
        assert teacher.drift is not None
        drifts.append(teacher.drift)
    plain, multiplied = drifts
    assert plain.stored_bytes == multiplied.stored_bytes and plain.weights == multiplied.weights
    assert plain.kl < multiplied.kl < 0.01 and multiplied.top1_agreement > 0.95
    assert not takes_sizes(nn.Linear(24, 32))
