"""Our FP8 teacher beside the one that nvidia-modelopt makes of the same model by the same recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill.teacher.e4m3 import dequantise, quantise
from distill.teacher.fp8 import fp8_weights
from distill.teacher.loading import load_teacher

RECIPE = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*mlp*weight_quantizer", "cfg": {"num_bits": (4, 3), "axis": 0}},
    ],
    "algorithm": "max",
}
"""E4M3 weights with a scale an output channel; attention and the output layer as they are: our default for a Llama."""


@pytest.fixture
def theirs(tiny_llama: Path) -> PreTrainedModel:
    # Here, for every process that collects tests would import it for seconds.
    mtq: Any = pytest.importorskip("modelopt.torch.quantization")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    mtq.quantize(model, RECIPE)
    return model


def test_both_change_the_same_weights(tiny_llama: Path, theirs: PreTrainedModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    changed = {name for name, module in theirs.named_modules() if getattr(module, "weight_quantizer", None) is not None}
    changed = {name for name in changed if theirs.get_submodule(name).weight_quantizer.is_enabled}
    assert changed == {name for name, _, _ in fp8_weights(plain)}
    assert changed


@torch.no_grad()
def test_weights_agree_to_a_step_of_e4m3_and_err_as_much(tiny_llama: Path, theirs: PreTrainedModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    for name, module, _ in fp8_weights(plain):
        assert isinstance(module, nn.Linear)
        weight, other = module.weight.float(), theirs.get_submodule(name)
        mine = dequantise(*quantise(module.weight)).float()
        their = other.weight_quantizer(other.weight).float()
        # Where one rounds up and the other down: three bits of mantissa, or the least step near zero.
        scale = weight.abs().amax(-1, keepdim=True) / 448
        assert ((mine - their).abs() <= weight.abs() / 8 + scale * 2**-9 + weight.abs() / 128).all()
        assert (mine - weight).norm() == pytest.approx(float((their - weight).norm()), rel=0.02)


@torch.no_grad()
def test_predictions_agree(tiny_llama: Path, theirs: PreTrainedModel) -> None:
    ours = load_teacher(tiny_llama, precision="fp8", device=torch.device("cpu"), blocks=None).model
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    ids = torch.randint(0, plain.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    mine, their, exact = (model(ids).logits.float().log_softmax(-1) for model in (ours, theirs, plain))

    def kl(p: torch.Tensor, q: torch.Tensor) -> float:
        return float((p.exp() * (p - q)).sum(-1).mean())

    # They round differently, and are no further from each other than either is from the model in bf16.
    drift = kl(exact, their)
    assert drift > 0
    assert kl(exact, mine) == pytest.approx(drift, rel=0.25)
    assert kl(their, mine) < drift
