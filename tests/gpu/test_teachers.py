"""FP8 teachers on a device: products against float64, and a whole model against itself in bf16."""

import numpy as np
import torch
from torch import nn

from distill.teacher.e4m3 import dequantise, quantise
from distill.teacher.fp8_linear import Fp8Linear, multiplies_in_fp8
from distill.teacher.kept import Kept
from distill.teacher.loading import load_teacher
from minitron import builtin
from minitron.measure.quality import hidden_states


def test_a_product_in_fp8_is_that_of_the_same_numbers(device: torch.device) -> None:
    """Of a number of tokens that is no multiple of anything, of inputs that do not lie by rows, with a bias."""
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, bias=True, dtype=torch.bfloat16).to(device)
    states = torch.randn(48, 3, 7).to(device, torch.bfloat16).permute(1, 2, 0)
    made = Fp8Linear(linear)(states)
    rounded = []
    for matrix in (states.flatten(0, -2), linear.weight.detach()):
        numbers, scale = quantise(matrix)
        rounded.append(numbers.float().cpu().double() * scale.cpu().double())
    wanted = rounded[0] @ rounded[1].T + linear.bias.detach().cpu().double()
    assert made.shape == (3, 7, 32) and made.dtype == torch.bfloat16
    # Sums in fp32 or better, the result in bf16.
    torch.testing.assert_close(made.detach().flatten(0, -2).cpu().double(), wanted, rtol=2**-6, atol=2**-6)


def test_weights_come_back(device: torch.device) -> None:
    weight = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    back = dequantise(*quantise(weight))
    assert back.device.type == device.type
    # Three bits of fraction, and two more roundings to eight.
    torch.testing.assert_close(back.cpu(), weight.cpu(), rtol=2**-4 + 2**-7, atol=1e-2)


def test_a_teacher_in_fp8_is_near_itself(device: torch.device) -> None:
    blocks = np.arange(3, 3 + 4 * 32).reshape(4, 32)
    found = load_teacher(
        builtin.MODEL,
        precision="fp8",
        keep=Kept(attention=False, before_attention=False),
        device=device,
        blocks=blocks,
        batch_size=2,
    )
    assert found.drift is not None and 0 < found.drift.kl < 0.05
    linears = [module for module in found.model.modules() if isinstance(module, Fp8Linear)]
    # The head is one of those that stay; on a CPU all of them are widened when they run.
    assert bool(linears) == multiplies_in_fp8(nn.Linear(16, 16, device=device))
    states = hidden_states(found.model, torch.from_numpy(blocks))
    assert states.device.type == device.type and bool(states.isfinite().all())
