"""Students in fewer bits that begin where a rounding with feedback left them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import RECIPE, Killed, kill, require_equal, stop_after
from numpy.typing import NDArray
from quantising import in_bf16, save_wide_hybrid
from torch import Tensor

from distill.run.distillation import Distillation
from distill.run.fake_quantised import FakeQuantised
from distill.run.output import calibration
from distill.run.recipe_file import Stage
from distill.run.rounded_start import RoundedStart, write_start
from distill.run.stages import distill_stages
from distill.run.train import distill
from distill.text.data import Text, read_text
from importance.rounding.calibrated import Calibrated
from minitron.errors import MinitronError
from minitron.measure.records import Source
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.quantise.assigned import assign
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import quantise

CPU = torch.device("cpu")
CALIBRATE = partial(Calibrated, device=CPU)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(save_wide_hybrid(tmp_path_factory.mktemp("hybrid") / "model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, hybrid: Path, short_text: Path) -> Text:
    return read_text(
        load_tokenizer(hybrid),
        (Source(str(short_text)),),
        sequence_length=RECIPE.sequence_length,
        validation_sequences=RECIPE.validation_sequences,
        folder=tmp_path_factory.mktemp("tokens"),
    )


def scales(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in Checkpoint(folder).tensors() if "weight_scale" in name}


@pytest.mark.parametrize("form", ["int4", "nvfp4a16"])
def test_training_begins_where_quantize_would_end(form: str, hybrid: Path, text: Text, tmp_path: Path) -> None:
    spec, ids = read_spec(hybrid), calibration(text, RECIPE)
    assigned = assign(spec, Checkpoint(hybrid), Wanted(form))
    write_start(tmp_path / "start", hybrid, spec, assigned, CALIBRATE(hybrid, ids, feedback=True))
    start = RoundedStart.read(tmp_path / "start")
    model = load_model(hybrid, dtype=torch.float32)
    fake = FakeQuantised.of(hybrid, spec, Wanted(form), start=start)
    fake.put_on(model, spec, hybrid, start=start)
    quantise(hybrid, tmp_path / "rounded", Wanted(form), CALIBRATE(hybrid, ids, feedback=True))
    other = load_model(tmp_path / "rounded", dtype=torch.float32)
    rows = torch.from_numpy(text.validation)
    assert torch.equal(model(input_ids=rows).logits, other(input_ids=rows).logits)
    # Most weights have not been moved.
    weights = dict(Checkpoint(hybrid).tensors())
    same = [float((start.weight(name) == weights[name]).float().mean()) for name in start.headers]
    assert all(0.5 < share < 1 for share in same)


def test_it_begins_nearer_and_keeps_its_scales(hybrid: Path, short_text: Path, text: Text, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4")
    result = distill(asked, RECIPE, calibrate=CALIBRATE)
    quantise(hybrid, tmp_path / "rounded", Wanted("int4"), CALIBRATE(hybrid, calibration(text, RECIPE), feedback=True))
    kept = scales(tmp_path / "rounded")
    assert kept and all(torch.equal(scales(tmp_path / "out")[name], one) for name, one in kept.items())
    nearest = distill(replace(asked, output=tmp_path / "nearest", student_round="nearest"), RECIPE)
    assert result.curve[0]["kl"] < nearest.curve[0]["kl"]


def test_a_killed_run_begins_once(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    roundings: list[bool] = []

    def calibrate(folder: Path, blocks: NDArray[np.int64], *, feedback: bool) -> Calibrated:
        roundings.append(feedback)
        return CALIBRATE(folder, blocks, feedback=feedback)

    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4")
    whole = distill(replace(asked, output=tmp_path / "whole"), RECIPE, calibrate=calibrate)
    assert roundings == [True]
    with pytest.raises(Killed):
        distill(asked, RECIPE, calibrate=calibrate, progress=stop_after(5, kill))
    require_equal(distill(asked, RECIPE, calibrate=calibrate), whole)
    assert roundings == [True, True]


def test_a_beginning_of_which_a_bit_changed_is_told(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4")
    with pytest.raises(Killed):
        distill(asked, RECIPE, calibrate=CALIBRATE, progress=stop_after(5, kill))
    file = tmp_path / "out.work/rounded/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(MinitronError, match=r"rounded/model\.safetensors is damaged \(its checksum differs\)"):
        distill(asked, RECIPE, calibrate=CALIBRATE)


def test_stages_keep_the_scales_of_the_first(hybrid: Path, short_text: Path, text: Text, tmp_path: Path) -> None:
    stages = [Stage(replace(RECIPE, steps=2), (Source(str(short_text)),)) for _ in range(2)]
    asked = Distillation(hybrid, hybrid, (), tmp_path / "out", student_format="int4", work=tmp_path / "work")
    first, second = distill_stages(asked, stages, calibrate=CALIBRATE)
    quantise(hybrid, tmp_path / "rounded", Wanted("int4"), CALIBRATE(hybrid, calibration(text, RECIPE), feedback=True))
    kept = scales(tmp_path / "rounded")
    assert kept and all(torch.equal(scales(tmp_path / "out")[name], one) for name, one in kept.items())
    # The first stage's student lies in 16 bits between them.
    assert second.curve[0]["kl"] == pytest.approx(first.curve[-1]["kl"], rel=0.05)


def test_how_it_begins_is_part_of_the_run_and_needs_a_format(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4")
    with pytest.raises(Killed):
        distill(asked, RECIPE, calibrate=CALIBRATE, progress=stop_after(5, kill))
    with pytest.raises(MinitronError, match="round"):
        distill(replace(asked, student_round="nearest"), RECIPE)
    with pytest.raises(MinitronError, match="--format"):
        Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_round="nearest")
