"""Students that run as they will be written: forward, backward, and what is written at the end."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from distilling import RECIPE, Killed, kill, require_equal, stop_after
from quantising import in_bf16, save_wide_hybrid, save_wide_llama
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import pipeline
from distill.run.distillation import Distillation
from distill.run.fake_quantised import FakeQuantised
from distill.run.recipe_file import Stage
from distill.run.stages import distill_stages
from distill.run.train import distill
from distill.teacher.teacher_source import answers
from distill.text.data import read_text
from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.measure.quality import measure_quality
from minitron.measure.records import Source
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.output_layer import OutputLayer
from minitron.model.spec import read_spec
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import quantise

WEIGHTS: Final = "model.safetensors"
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
    return in_bf16(save_wide_llama(tmp_path_factory.mktemp("llama") / "model"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(save_wide_hybrid(tmp_path_factory.mktemp("hybrid") / "model"))


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


def test_an_output_layer_is_rounded_where_the_loss_reads_it(llama: Path, tmp_path: Path) -> None:
    wanted = Wanted("int4", {"lm_head": "int8"})
    model, _ = rounded(llama, wanted)
    other = read_back(llama, wanted, tmp_path / "out")
    assert torch.equal(model(input_ids=IDS).logits, other(input_ids=IDS).logits)
    head, read = OutputLayer(model.get_output_embeddings()), OutputLayer(other.get_output_embeddings())
    assert head.is_rounded and not read.is_rounded
    assert torch.equal(head.matrix, read.weight) and not torch.equal(head.weight, read.weight)
    # Its gradient is for the numbers that are trained.
    head.matrix.square().sum().backward()
    assert torch.equal(head.weight.grad, 2 * read.weight)  # type: ignore[arg-type]


def test_a_failure_leaves_the_parameters_in_their_places(llama: Path) -> None:
    model, _ = rounded(llama, Wanted("int4"))
    before = dict(model.named_parameters())
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(RuntimeError):
        linear(torch.zeros(1, 3))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.fixture(scope="module")
def teacher(hybrid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with other numbers, near enough to be learnt from."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(hybrid, folder)
    torch.manual_seed(0)
    moved = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(moved, folder / WEIGHTS, {"format": "pt"})
    return folder


def measured(folder: Path, teacher: Path, student: Path, text: Path, work: Path) -> float:
    """KL to the teacher of a folder that was written, on the held-out text of the run."""
    held_out = read_text(
        load_tokenizer(student), (Source(str(text)),), sequence_length=16, validation_sequences=6, folder=work
    ).validation
    one, other = (load_model(path, dtype=torch.float32) for path in (folder, teacher))
    found = measure_quality(one, held_out, teacher=answers(other, torch.device("cpu"))).kl_to_teacher
    assert found is not None
    return found


@pytest.mark.parametrize("head", ["bf16", pytest.param("int8", marks=pytest.mark.slow)])
def test_what_is_written_is_what_was_trained(
    head: str, hybrid: Path, teacher: Path, short_text: Path, tmp_path: Path
) -> None:
    keep = {"lm_head": head}
    asked = Distillation(
        hybrid, teacher, short_text, tmp_path / "out", student_format="int4", student_keep=keep, student_round="nearest"
    )
    result = distill(asked, RECIPE)
    assert result.curve[-1]["kl"] < result.curve[0]["kl"]
    assert read_json(tmp_path / "out/config.json")["quantization_config"]["quant_method"] == "compressed-tensors"
    kl = measured(tmp_path / "out", teacher, hybrid, short_text, tmp_path / "tokens")
    # Norms and the like are written in bf16.
    assert kl == pytest.approx(result.curve[-1]["kl"], rel=0.01)
    # Rounding the same student after training without its format would have been another thing.
    plain = distill(
        replace(asked, output=tmp_path / "plain", student_format=None, student_keep={}, student_round="best"), RECIPE
    )
    quantise(tmp_path / "plain", tmp_path / "after", Wanted("int4", keep))
    after = measured(tmp_path / "after", teacher, hybrid, short_text, tmp_path / "tokens")
    assert kl < after and plain.curve[-1]["kl"] != result.curve[-1]["kl"]
    card = (tmp_path / "out/README.md").read_text()
    assert "The linears are in int4, " in card and f" in {head}: they ran so" in card
    assert (tmp_path / "out/distillation.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "out", "plain", "tokens"]


def test_a_killed_run_in_a_format_goes_on_as_if_it_had_not_been(
    hybrid: Path, teacher: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(
        hybrid, teacher, short_text, tmp_path / "out", student_format="nvfp4a16", student_round="nearest"
    )
    whole = distill(replace(asked, output=tmp_path / "whole"), RECIPE)
    with pytest.raises(Killed):
        distill(asked, RECIPE, progress=stop_after(5, kill))
    with pytest.raises(MinitronError, match="student_format"):
        distill(replace(asked, student_format="int8"), RECIPE)
    require_equal(distill(asked, RECIPE), whole)


def test_the_last_of_several_stages_alone_is_written_in_the_format(
    hybrid: Path, teacher: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(
        hybrid, teacher, (), tmp_path / "out", student_format="int8", student_round="nearest", work=tmp_path / "work"
    )
    stages = [Stage(replace(RECIPE, steps=2), (Source(str(short_text)),)) for _ in range(2)]
    seen: list[bool] = []

    def note(text: str) -> None:
        if text.startswith("Stage 2"):
            seen.append("quantization_config" in read_json(tmp_path / "work/stage-1/config.json"))

    first, second = distill_stages(asked, stages, note=note)
    assert seen == [False]
    assert "quantization_config" in read_json(tmp_path / "out/config.json")
    # Both ran rounded: the second begins where the first ended, on scales of its own.
    assert second.curve[0]["kl"] == pytest.approx(first.curve[-1]["kl"], rel=0.2)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"student_format": "int5"}, "int5"),
        ({"student_keep": {"attention": "bf16"}}, "--format"),
        ({"student_format": "int8", "student_keep": {"embedding": "int8"}}, "it is no linear"),
        ({"student_format": "int8", "student_keep": {"nothing": "bf16"}}, "nothing"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_loaded(
    changed: Any, told: str, hybrid: Path, teacher: Path, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(MinitronError, match=told):
        distill(Distillation(hybrid, teacher, short_text, tmp_path / "out", **changed), RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_model_in_fewer_bits_learns_of_itself(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e-3)
    result = distill(
        Distillation(hybrid, hybrid, short_text, tmp_path / "out", student_format="int4", student_round="nearest"),
        recipe,
    )
    before, *_, after = (point["kl"] for point in result.curve)
    assert 0 < after < before
    with pytest.raises(MinitronError, match="both student and teacher"):
        distill(Distillation(hybrid, hybrid, short_text, tmp_path / "other"), recipe)


@pytest.mark.parametrize("form", [pytest.param("fp8", marks=pytest.mark.slow), "nvfp4"])
def test_formats_with_scales_of_inputs_see_the_text(
    form: str, hybrid: Path, teacher: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(hybrid, teacher, short_text, tmp_path / "out", student_format=form, student_round="nearest")
    with pytest.raises(MinitronError, match="calibration"):
        distill(asked, RECIPE)
    result = pipeline.distill(asked, RECIPE).result
    written = dict(Checkpoint(tmp_path / "out").tensors())
    scales = {name: float(tensor) for name, tensor in written.items() if name.endswith(".input_scale")}
    assert scales and all(scale > 0 for scale in scales.values()) and len(set(scales.values())) > 1
    kl = measured(tmp_path / "out", teacher, hybrid, short_text, tmp_path / "tokens")
    assert kl == pytest.approx(result.curve[-1]["kl"], rel=0.01)
