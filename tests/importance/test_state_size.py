"""A mixer's states count by what they carry: against the recurrence, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from importance.score.state_size import READS, observing_states, state_scores, state_sites
from importance.score.totals import Totals
from minitron.cut.plan import make_plan
from minitron.model.loading import load_model
from minitron.model.spec import read_spec


@pytest.mark.parametrize("length", [32, 40, 3])
def test_the_energy_of_states_is_that_of_the_recurrence(tiny_hybrid: Path, length: int) -> None:
    spec = read_spec(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, spec.sizes["vocab"], (2, length)))
    totals, projected = Totals(), {}
    site = next(iter(state_sites(spec)))
    mixer = model.get_submodule(site.mixer)

    def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        projected["here"] = output.detach().double()

    mixer.get_submodule("in_proj").register_forward_hook(keep)
    with torch.no_grad(), observing_states(model, spec, totals):
        model(input_ids=ids)

    heads, width = spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"]
    groups, count = spec.sizes["mamba_group"], spec.sizes["ssm_state"]
    inner = heads * width
    _, mixed, times = projected["here"].split([inner, inner + 2 * groups * count, heads], -1)
    weight, bias = mixer.conv1d.weight.double(), mixer.conv1d.bias.double()
    reach = weight.shape[-1]
    mixed = functional.silu(
        functional.conv1d(mixed.mT, weight, bias, padding=reach - 1, groups=mixed.shape[-1])[..., :length].mT
    )
    x, b, c = mixed.split([inner, groups * count, groups * count], -1)
    x, b, c = x.unflatten(-1, (heads, width)), b.unflatten(-1, (groups, count)), c.unflatten(-1, (groups, count))
    steps = functional.softplus(times + mixer.dt_bias.double()).clamp(*mixer.time_step_limit)
    decay = torch.exp(steps * -mixer.A_log.double().exp())
    reads = {-(-length * part // READS) - 1 for part in range(1, READS + 1)}
    held, energies = torch.zeros(2, heads, count, width, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    of_group = [head * groups // heads for head in range(heads)]
    for token in range(length):
        entered = b[:, token, of_group][..., None] * x[:, token, :, None]
        held = decay[:, token, :, None, None] * held + steps[:, token, :, None, None] * entered
        if token in reads:
            energies += (c[:, token, of_group][..., None] * held).square().sum((0, 1, 3))
    expected = (energies / (2 * min(READS, length))).sqrt().detach().numpy()
    assert np.allclose(state_scores(totals, site), expected, rtol=1e-4)


def test_a_plan_keeps_the_states_that_carry_most(tiny_hybrid: Path) -> None:
    spec = read_spec(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    blocks = np.random.default_rng(0).integers(0, spec.sizes["vocab"], (4, 32))
    scores = score_model(model, spec, blocks, ScoringOptions(layers="none"))
    plan = make_plan(spec, {"ssm_state_size": 8}, tuple(range(len(spec.layers))), scores)
    for layer, kind in enumerate(spec.letters):
        if kind == "M":
            kept = plan.keep["ssm_state", layer]
            assert set(kept.tolist()) == set(np.argsort(-scores.importance["ssm_state", layer])[:8].tolist())
