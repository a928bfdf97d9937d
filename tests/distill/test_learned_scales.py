"""Scales of a student in fewer bits that are trained beside its weights."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from distilling import RECIPE, Killed, kill, require_equal, stop_after
from quantising import in_bf16, save_wide_hybrid, save_wide_llama
from torch import Tensor

from distill.run.distillation import Distillation
from distill.run.fake_quantised import FakeQuantised
from distill.run.recipe_file import Stage
from distill.run.stages import distill_stages
from distill.run.train import distill
from distill.teacher.teacher_source import answers
from distill.text.data import read_text
from importance.rounding.calibrated import Calibrated
from minitron.errors import MinitronError
from minitron.measure.quality import measure_quality
from minitron.measure.records import Source
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.quantise.grids import GRIDS
from minitron.quantise.wanted import Wanted

CALIBRATE = partial(Calibrated, device=torch.device("cpu"))
ENDS = {"int4": (-8.0, 7.0), "int8": (-128.0, 127.0), "nvfp4a16": (-6.0, 6.0)}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(save_wide_hybrid(tmp_path_factory.mktemp("hybrid") / "model", "ME*"))


@pytest.mark.parametrize("form", list(ENDS))
def test_gradients_are_those_of_a_learned_step_size(form: str, tmp_path: Path) -> None:
    folder = save_wide_llama(tmp_path / "model")
    spec = read_spec(folder)
    model = load_model(folder, dtype=torch.float32)
    model.requires_grad_(True)
    fake = FakeQuantised.of(folder, spec, Wanted(form), learns=True)
    fake.put_on(model, spec, folder)
    name = "model.layers.1.mlp.down_proj"
    linear = model.get_submodule(name)
    assert isinstance(linear.weight, Tensor)
    assert isinstance(linear.weight_scale_0, Tensor)
    # Beyond the ends of the grid as well as between them.
    with torch.no_grad():
        linear.weight[0] *= 5
    read = torch.randn(7, linear.weight.shape[1], generator=torch.Generator().manual_seed(0))
    out = linear(read)
    wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * wanted).sum().backward()
    # The same by autograd, through a sum that is the rounded weight and whose parts are what is derived.
    factor = torch.zeros_like(linear.weight_scale_0, requires_grad=True)
    weight = linear.weight.detach().clone().requires_grad_(True)
    base = fake.scales[f"{name}.weight"].step * factor.exp()
    step = base.repeat_interleave(weight.shape[1] // base.shape[1], 1)
    scaled = weight / step
    numbers = GRIDS["e2m1" if form == "nvfp4a16" else form].nearest(scaled.detach())
    low, high = ENDS[form]
    between = (scaled >= low) & (scaled <= high)
    assert bool(between.any()) and not bool(between.all())
    whole = torch.where(between, step * (scaled + (numbers - scaled).detach()), step * numbers)
    ((read @ whole.T) * wanted).sum().backward()
    assert factor.grad is not None and linear.weight_scale_0.grad is not None
    torch.testing.assert_close(linear.weight_scale_0.grad, factor.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.weight.grad, wanted.T @ read, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "form", ["int4", pytest.param("nvfp4a16", marks=pytest.mark.slow), pytest.param("int8", marks=pytest.mark.slow)]
)
def test_what_is_learned_is_what_is_written(form: str, hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format=form, student_scales="learned")
    result = distill(asked, RECIPE, calibrate=CALIBRATE)
    frozen = distill(replace(asked, output=tmp_path / "frozen", student_scales="frozen"), RECIPE, calibrate=CALIBRATE)
    assert result.curve[0]["kl"] == pytest.approx(frozen.curve[0]["kl"], rel=1e-6)
    ours, theirs = (dict(Checkpoint(each.output).tensors()) for each in (result, frozen))
    assert ours.keys() == theirs.keys()
    scales = [name for name in ours if name.endswith("weight_scale")]
    # In E4M3 a scale moves by eighths.
    moved = [not torch.equal(ours[name].float(), theirs[name].float()) for name in scales]
    assert any(moved) if form == "nvfp4a16" else all(moved)
    held_out = read_text(
        load_tokenizer(hybrid), (Source(str(short_text)),), sequence_length=16, validation_sequences=6,
        folder=tmp_path / "tokens",
    ).validation  # fmt: skip
    model, teacher = load_model(tmp_path / "out", dtype=torch.float32), load_model(hybrid)
    found = measure_quality(model, held_out, teacher=answers(teacher, torch.device("cpu"))).kl_to_teacher
    assert found == pytest.approx(result.curve[-1]["kl"], rel=0.05)


def test_a_killed_run_goes_on_with_its_scales(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4", student_scales="learned")
    whole = distill(replace(asked, output=tmp_path / "whole"), RECIPE, calibrate=CALIBRATE)
    with pytest.raises(Killed):
        distill(asked, RECIPE, calibrate=CALIBRATE, progress=stop_after(5, kill))
    require_equal(distill(asked, RECIPE, calibrate=CALIBRATE), whole)


def test_what_cannot_be_learned_is_said(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="fp8", student_scales="learned")
    with pytest.raises(MinitronError, match="one scale for a whole matrix"):
        distill(asked, RECIPE, calibrate=CALIBRATE)
    stages = [Stage(RECIPE, ()), Stage(RECIPE, ())]
    with pytest.raises(MinitronError, match="one stage"):
        distill_stages(replace(asked, student_format="int4"), stages, calibrate=CALIBRATE)
    with pytest.raises(MinitronError, match="--format"):
        replace(asked, student_format=None)
    assert not list(tmp_path.iterdir())
