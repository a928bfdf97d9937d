"""Students that run as they will be written: forward, backward, and what is written at the end."""

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from distill.run.fake_quantised import FakeQuantised
from minitron.errors import MinitronError
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import quantise

IDS = torch.arange(3, 27).reshape(2, 12)
FORMATS = ["fp8-dynamic", "nvfp4a16", "int8", "int4"]


def rounded(folder: Path, wanted: Wanted) -> tuple[PreTrainedModel, FakeQuantised]:
    spec = read_spec(folder)
    model = load_model(folder, dtype=torch.float32)
    model.requires_grad_(True)
    fake = FakeQuantised.of(folder, spec, wanted)
    fake.put_on(model, spec, folder)
    return model, fake


def read_back(folder: Path, wanted: Wanted, output: Path) -> PreTrainedModel:
    """What a reader makes of the written files, which shares no code with rounding in memory but the packers'."""
    quantise(folder, output, wanted)
    return load_model(output, dtype=torch.float32)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.requires_grad_(True)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(
        tiny_models.save_llama(
            tmp_path_factory.mktemp("llama") / "model",
            hidden_size=96,
            intermediate_size=128,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=32,
        )
    )


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(
        tiny_models.save_hybrid(
            tmp_path_factory.mktemp("hybrid") / "model",
            pattern="MEM*M",
            hidden_size=64,
            mamba_num_heads=8,
            mamba_head_dim=16,
            n_groups=2,
            head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=96,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=64,
        )
    )


def in_bf16(folder: Path) -> Path:
    """The same checkpoint with numbers that bf16 has, so that what stays as it is stays to the bit."""
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("fixture", ["hybrid", "llama"])
@pytest.mark.parametrize("form", FORMATS)
def test_forward_and_backward_are_those_of_the_files(
    fixture: str, form: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    model, fake = rounded(folder, Wanted(form))
    assert list(fake.assigned.matrices)
    before = list(model.named_parameters())
    other = read_back(folder, Wanted(form), tmp_path / "out")
    assert torch.equal(model(input_ids=IDS).logits, other(input_ids=IDS).logits)
    assert not torch.equal(model(input_ids=IDS).logits, load_model(folder, dtype=torch.float32)(input_ids=IDS).logits)
    # Straight through: the gradient at the rounded weights, for the weights.
    mine, theirs = gradients(model), gradients(other)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert torch.equal(gradient, theirs[name]), name
    after = list(model.named_parameters())
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(one is other for (_, one), (_, other) in zip(before, after, strict=True))


def test_a_failure_leaves_the_parameters_in_their_places(llama: Path) -> None:
    model, _ = rounded(llama, Wanted("int4"))
    before = dict(model.named_parameters())
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(RuntimeError):
        linear(torch.zeros(1, 3))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_the_output_layer_cannot_be_trained_in_a_format(llama: Path) -> None:
    with pytest.raises(MinitronError, match="keep it in bf16"):
        rounded(llama, Wanted("int8", keep={"head": "int8"}))
