"""Every family's tensors are found, counted and decoded where they are quantised, whatever it calls them."""

from pathlib import Path

import pytest
import torch
from family_sizes import FAMILY_SIZES
from quantising import quantise_folder
from safetensors.torch import load_file
from tiny_models import save_family
from torch import Tensor

from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.dequantised import open_plain
from minitron.model.spec import read_spec
from minitron.model.stored import read_stored_spec

SECTION = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}


def pack(weight: Tensor, *, bare: bool) -> dict[str, Tensor]:
    """E4M3 with a power of two for every matrix; a `bare` tensor is no module's `weight`."""
    scale = torch.exp2(torch.ceil(torch.log2(weight.float().abs().amax((-2, -1), keepdim=True) / 448)))
    numbers = (weight.float() / scale).to(torch.float8_e4m3fn)
    if bare:
        return {"": numbers, "_scale": scale}
    scale = scale if weight.dim() == 3 else scale.reshape(())
    return {".weight": numbers, ".weight_scale": scale, ".input_scale": torch.ones(())}


@pytest.mark.parametrize("family", FAMILY_SIZES)
def test_a_quantised_model_comes_back(family: str, tmp_path: Path) -> None:
    plain = save_family(tmp_path / "plain", family, **FAMILY_SIZES[family][0])
    spec, checkpoint = read_spec(plain), Checkpoint(plain)
    wanted = {
        checkpoint.headers[name].stored or name
        for name, rule, _ in checkpoint.named_tensors(spec)
        if rule.is_projection and (rule.is_stacked or name.endswith(".weight"))
    }
    folder = quantise_folder(
        plain,
        tmp_path / "quantised",
        lambda stem, weight: pack(weight, bare=stem in wanted),
        SECTION,
        wanted=wanted.__contains__,
    )
    stored = read_stored_spec(folder)
    own = [header for name, header in Checkpoint(folder).headers.items() if stored.extra(name) is None]
    counted = footprint(stored, workload_of(stored, 8))
    measured = stored.source.measured
    assert measured is not None
    drafts = sum(measured.bytes[one.name] for one in stored.expected() if one.is_mtp)
    assert counted.weights + drafts == sum(header.num_bytes for header in own)
    target = open_plain(folder, dequantise=True)[0]
    prune(folder, make_plan(target, {}, tuple(range(len(target.layers)))), tmp_path / "bf16", dequantise=True)
    expected = load_file(plain / "model.safetensors")
    for name, tensor in load_file(tmp_path / "bf16" / "model.safetensors").items():
        whole = expected.pop(name)
        if name in wanted:
            numbers, scale, *_ = pack(whole, bare=name in wanted).values()
            assert torch.equal(tensor, (numbers.double() * scale.double()).bfloat16()), name
        else:
            assert torch.equal(tensor, whole), name
    assert not expected
