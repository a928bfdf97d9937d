"""An output layer in fewer bits: written, named in config.json, and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from quantising import in_bf16, save_wide_hybrid, save_wide_llama
from torch import Tensor

from importance.rounding.calibrated import Calibrated
from importance.rounding.in_memory import round_in_memory
from minitron.measure.quality import hidden_states
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS
from minitron.memory.workload import workload_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import searched_scales
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import quantise

CPU = torch.device("cpu")
BLOCKS = np.random.default_rng(7).integers(3, 250, (4, 32))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(save_wide_llama(tmp_path_factory.mktemp("llama") / "model"))


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.written])
def test_an_output_layer_is_written_as_it_is_counted_and_read_back(form: str, llama: Path, tmp_path: Path) -> None:
    wanted, out = Wanted(form, {"lm_head": form}), tmp_path / "out"
    rounding = (Calibrated(llama, BLOCKS, CPU, feedback=False),) if FORMATS[form].inputs == "static" else ()
    result = quantise(llama, out, wanted, *rounding)
    spec = read_spec(llama)
    counted = footprint(spec, workload_of(spec, 32, weights=form, keep={"lm_head": form})).weights
    assert result.weight_bytes == result.planned_bytes == Checkpoint(out).weight_bytes == counted
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "lm_head" not in " ".join(section["ignore"])
    targets = [name for group in section["config_groups"].values() for name in group["targets"]]
    # vLLM's output layer is no Linear: its name must be there.
    assert FORMATS[form].method == "modelopt" or r"re:.*lm_head$" in targets
    before, after = (load_model(path, dtype=torch.float32).get_output_embeddings().weight for path in (llama, out))
    error = float((after - before).square().mean() / before.square().mean())
    assert 0.3 * FORMATS[form].relative_error < error < 3 * FORMATS[form].relative_error


def test_an_output_layer_that_stays_is_ignored_by_name(llama: Path, tmp_path: Path) -> None:
    quantise(llama, tmp_path / "out", Wanted("int8"))
    section = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert "lm_head" in section["ignore"]
    assert [group["targets"] for group in section["config_groups"].values()] == [["Linear"]]


def test_an_output_layer_is_rounded_in_memory_by_what_it_reads(tmp_path: Path) -> None:
    folder = save_wide_hybrid(tmp_path / "model", "M*")
    spec, wanted = read_spec(folder), Wanted("int4", {"lm_head": "int4"})
    model = load_model(folder, dtype=torch.float32)
    read = torch.cat([hidden_states(model, torch.from_numpy(BLOCKS)).flatten(0, 1)]).double()
    before: Tensor = model.get_output_embeddings().weight.detach().clone()
    round_in_memory(model, spec, wanted, BLOCKS)
    after: Tensor = model.get_output_embeddings().weight.detach()
    form = FORMATS["int4"].in_groups(64)
    (scales,) = searched_scales(form, [before])
    nearest = off_grid(on_grid(form, before, scales), scales)

    def lost(weight: Tensor) -> float:
        return float((read @ (weight.double() - before.double()).T).square().mean())

    assert 0 < lost(after) < 0.8 * lost(nearest)
