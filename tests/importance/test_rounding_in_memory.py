"""A model that is rounded in memory, against its files rounded layer by layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_hybrid, save_llama, write_text

from importance.rounding import in_memory
from importance.rounding.calibrated import Calibrated
from importance.rounding.in_memory import round_in_memory
from importance.search.trial import Trials
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import make_plan
from minitron.measure.text import token_blocks
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.model.tensor_map import held
from minitron.quantise.assigned import assign, units_of
from minitron.quantise.packing import off_grid
from minitron.quantise.wanted import Wanted


def sequences(folder: Path, tmp_path: Path, count: int = 4) -> np.ndarray:
    text = write_text(tmp_path / "text.txt", sentences=400)
    return token_blocks(load_tokenizer(folder), text, sequence_length=32, samples=count)


@pytest.mark.parametrize("save", [save_hybrid, save_llama])
@pytest.mark.parametrize("form", ["int8", "fp8-dynamic"])
def test_the_first_layer_is_rounded_as_its_file_is(save: object, form: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")  # type: ignore[operator]
    spec, blocks, wanted = read_spec(folder), sequences(folder, tmp_path), Wanted(form)
    assigned = assign(spec, Checkpoint(folder), wanted)
    calibrated = Calibrated(folder, blocks, torch.device("cpu"), dtype=torch.float32)
    known = {stored: name for name, stored in Checkpoint(folder).stored_names(spec).items()}
    expected = {
        known[one.matrix.name]: off_grid(one.numbers, one.scales)
        for one in calibrated.rounded(spec, Checkpoint(folder), assigned, lambda *_: None)
        if one.matrix.layer == 0
    }
    model = load_model(folder, dtype=torch.float32)
    round_in_memory(model, spec, wanted, blocks, batch_size=4)
    state = model.state_dict()
    found = {
        one.name: place for piece in held(spec) for one, place in piece.split(state[piece.name]) if one.name in expected
    }
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].float(), weight, rtol=0, atol=2e-6)


def test_the_units_of_a_spec_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    folder = save_hybrid(tmp_path / "model")
    spec, wanted = read_spec(folder), Wanted("int8", {"attention": "bf16"})
    assigned = assign(spec, Checkpoint(folder), wanted)
    names = Checkpoint(folder).stored_names(spec)
    found = [[(names[one.name], one.form, one.shape) for one in unit] for unit in units_of(spec, wanted)]
    assert found == [[(one.name, one.form, one.shape) for one in unit] for unit in assigned.units]


def test_some_layers_at_a_time_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hybrid(tmp_path / "model")
    spec, blocks = read_spec(folder), sequences(folder, tmp_path)
    once = load_model(folder, dtype=torch.float32)
    layers: list[int] = []
    turns = in_memory._in_turn
    monkeypatch.setattr(in_memory, "_in_turn", lambda *given: (layers.append(len(one)) or one for one in turns(*given)))
    round_in_memory(once, spec, Wanted("int8"), blocks)
    monkeypatch.setattr(in_memory, "AT_ONCE", 1)
    apart = load_model(folder, dtype=torch.float32)
    round_in_memory(apart, spec, Wanted("int8"), blocks)
    assert layers[0] == len(layers) - 1 > 3
    assert set(layers[1:]) == {1}
    # The second time a layer reads what rounded ones before it make.
    first = [name for name in once.state_dict() if ".layers.0." in name]
    for name in first:
        torch.testing.assert_close(once.state_dict()[name], apart.state_dict()[name])


def test_a_parent_keeps_what_its_candidates_round(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    spec, blocks = read_spec(folder), sequences(folder, tmp_path, 8)
    parent = load_model(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    trials = Trials(parent, spec, blocks[4:], calibration=blocks[:4])
    whole = tuple(range(len(spec.layers)))
    losses = {}
    for form in ("bf16", "int8", "int4"):
        formats = dict.fromkeys(("attention", "mlp"), form)
        losses[form] = trials.run(make_plan(spec, {}, whole, formats=formats)).loss
    assert losses["bf16"] == pytest.approx(0.0, abs=1e-9)
    assert 0 < losses["int8"] < losses["int4"] / 10
    for name, tensor in parent.state_dict().items():
        assert torch.equal(tensor, before[name])
    kept = trials.run(make_plan(spec, {}, whole, formats={"attention": "bf16", "mlp": "bf16", "kv": "fp8"}))
    assert 0 < kept.loss < losses["int4"]


def test_a_cut_is_rounded_by_what_it_reads(tmp_path: Path) -> None:
    folder = save_hybrid(tmp_path / "model")
    spec, blocks = read_spec(folder), sequences(folder, tmp_path)
    parent = load_model(folder, dtype=torch.float32)
    plan = make_plan(spec, {}, tuple(range(len(spec.layers)))[:-1])
    small = cut_model(parent, spec, plan)
    target = plan.target(spec)
    round_in_memory(small, target, Wanted("int8"), blocks)
    names = {matrix.name for unit in units_of(target, Wanted("int8")) for matrix in unit}
    changed = {
        one.name
        for piece in held(target)
        for (one, new), (_, old) in zip(
            piece.split(small.state_dict()[piece.name]), piece.split(parent.state_dict()[piece.name]), strict=True
        )
        if not torch.equal(new, old)
    }
    assert changed == names
