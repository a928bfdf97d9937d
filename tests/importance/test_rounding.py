"""Rounding by what linears read, against plain arithmetic in float64."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantising import save_wide_hybrid
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli import app
from importance.rounding import calibrated
from importance.rounding.calibrated import Calibrated
from importance.rounding.descent import descended
from importance.rounding.feedback import DAMPING, Curvature, rounded_with_feedback
from minitron.errors import MinitronError, NotFinite
from minitron.measure.text import require_known, token_blocks
from minitron.memory.formats import FORMATS
from minitron.model.dequantised import open_plain
from minitron.model.loading import load_model, load_tokenizer
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import searched_scales
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import Nearest, quantise


def inputs(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs that are much alike: a few directions carry most of them."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    return torch.randn(tokens, columns, generator=generator) @ mixed


def slow(weight: Tensor, step: Tensor, moments: Tensor, end: int) -> Tensor:
    """Column by column in float64: what is left of the columns that are not rounded yet is moved to where the outputs
    change least, by solving for it anew each time."""
    left, wide = weight.double().clone(), moments.double()
    wide = wide + DAMPING * wide.diagonal().mean() * torch.eye(len(wide), dtype=torch.float64)
    order = wide.diagonal().argsort(descending=True).tolist()
    numbers = torch.zeros_like(left)
    for place, column in enumerate(order):
        numbers[:, column] = (left[:, column] / step[:, column]).round().clamp(-end - 1, end)
        rest = order[place + 1 :]
        if rest:
            error = numbers[:, column] * step[:, column] - left[:, column]
            # least squares: the change d of the rest with  d H[rest, rest] = -error H[column, rest]
            left[:, rest] -= torch.linalg.solve(wide[rest][:, rest], error[:, None] * wide[column, rest], left=False)
    return numbers


def test_feedback_is_least_squares_column_by_column() -> None:
    weight = torch.randn(12, 160, generator=torch.Generator().manual_seed(1))
    read = inputs(600, 160)
    moments = read.T @ read / 600
    form = FORMATS["int4"].in_groups(32)
    scales = searched_scales(form, [weight], moments.diagonal())[0]
    found = rounded_with_feedback(form, weight, scales, Curvature.of(moments))
    expected = slow(weight, scales.spread(160).double(), moments, 7)
    # Where a number lies half-way between two, fp32 and float64 may part, and what follows then differs.
    assert float((found.double() != expected).double().mean()) < 0.02

    def loss(numbers: Tensor) -> float:
        return float((read @ (off_grid(numbers, scales) - weight).T).double().square().sum())

    assert loss(found) == pytest.approx(loss(expected.float()), rel=0.02)
    assert loss(found) < 0.5 * loss(on_grid(form, weight, scales))


def test_importance_is_what_an_error_costs_when_the_rest_makes_up_for_it() -> None:
    """The least of  e H e^T  over the columns that come after, where column j errs by 1 and those before do not."""
    read = inputs(400, 24)
    wide = (read.T @ read / 400).double()
    wide = wide + DAMPING * wide.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    found = Curvature.of(read.T @ read / 400)
    for place, column in enumerate(found.order.tolist()):
        rest = found.order[place + 1 :]
        least = wide[column, column]
        if len(rest):
            least = least - wide[column, rest] @ torch.linalg.solve(wide[rest][:, rest], wide[rest, column])
        assert float(found.importance[column]) == pytest.approx(float(least), rel=1e-4)


@pytest.mark.parametrize(("name", "share"), [("int4", 0.95), ("nvfp4a16", 0.95)])
def test_descent_ends_where_no_single_number_and_no_scale_can_be_bettered(name: str, share: float) -> None:
    form = FORMATS[name].in_groups(32 if name == "int4" else 16)
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    read = inputs(300, 64)
    curvature = Curvature.of(read.T @ read / 300)
    wide = curvature.moments.double()
    first = searched_scales(form, [weight], curvature.importance)[0]
    numbers = rounded_with_feedback(form, weight, first, curvature)

    def loss(numbers: Tensor, scales: Any) -> Tensor:
        error = off_grid(numbers, scales).double() - weight
        return ((error @ wide) * error).sum(1)

    before = loss(numbers, first)
    numbers, scales = descended(form, weight, numbers, first, curvature.moments, sweeps=60)
    least = loss(numbers, scales)
    assert (least <= before * (1 + 1e-6)).all()
    assert least.sum() < share * before.sum()
    # Off the grid's and the scales' places nothing stands.
    assert torch.equal(numbers, on_grid(form, off_grid(numbers, scales), scales))
    assert torch.equal(scales.step, scales.nearest(scales.step, scales.step))
    for column in range(64):
        for move in (-1.0, -0.5, 0.5, 1.0):
            other = numbers.clone()
            other[:, column] += move
            other = on_grid(form, off_grid(other, scales), scales)
            assert (loss(other, scales) >= least * (1 - 1e-5)).all()
    for group in range(scales.step.shape[1]):
        for factor in (0.93, 0.98, 1.02, 1.07):
            step = scales.step.clone()
            step[:, group] *= factor
            assert (loss(numbers, scales.at(scales.nearest(step, scales.step))) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", ["int4", "nvfp4a16", "int8", "fp8"])
def test_rows_go_in_runs_and_do_not_know_of_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS[name].in_groups(32) if name == "int4" else FORMATS[name]
    weight = torch.randn(11, 64, generator=torch.Generator().manual_seed(1))
    read = inputs(300, 64)
    curvature = Curvature.of(read.T @ read / 300)
    scales = searched_scales(form, [weight], curvature.importance)[0]
    found = []
    for rows in (4, 100):
        monkeypatch.setattr(calibrated, "_ROWS", rows)
        numbers, own = calibrated.fed_back(form, weight, scales, curvature)
        found.append((off_grid(numbers, own), own.stored[".weight_scale"].float()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_hybrid(tmp_path_factory.mktemp("hybrid") / "model", "MEM*-")


def blocks_of(model: Path, text: Path, samples: int = 12) -> Any:
    return token_blocks(load_tokenizer(model), text, sequence_length=48, samples=samples)


def output_error(source: Path, folder: Path, blocks: Any) -> float:
    """The mean KL divergence from the source."""
    ids = torch.from_numpy(blocks)
    with torch.no_grad():
        log_p, log_q = (
            load_model(one, dtype=torch.float32, device=torch.device("cpu"))(ids).logits.log_softmax(-1)
            for one in (source, folder)
        )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_inputs_that_are_not_finite_are_told_with_the_matrix_that_reads_them(
    hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    shutil.copytree(hybrid, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["backbone.layers.4.mixer.up_proj.weight"][:, :5] = 3e38
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    found = Calibrated(tmp_path / "model", blocks_of(hybrid, short_text, 2), torch.device("cpu"))
    with pytest.raises(NotFinite, match=r"layers\.4\.mixer\.down_proj\.weight reads numbers that are no longer finite"):
        quantise(tmp_path / "model", tmp_path / "out", Wanted("int8"), found)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["int4", "nvfp4"])
def test_what_is_read_tells_how_to_round(name: str, hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    """Experts, Mamba, attention and MLPs: on the text's own tokens the output changes less than by rounding."""
    blocks = blocks_of(hybrid, short_text)
    keep = {"attention": "bf16"} if name == "nvfp4" else {}
    found = Calibrated(hybrid, blocks, torch.device("cpu"), dtype=torch.float32)
    result = quantise(hybrid, tmp_path / "fed", Wanted(name, keep), found)
    assert result.weight_bytes == result.planned_bytes
    other = {"int4": name, "nvfp4": "nvfp4a16"}[name]
    quantise(hybrid, tmp_path / "nearest", Wanted(other, keep), Nearest(search=False))
    errors = {folder: output_error(hybrid, tmp_path / folder, blocks) for folder in ("fed", "nearest")}
    assert errors["fed"] < 0.7 * errors["nearest"]


def test_scales_of_inputs_are_the_largest_of_what_is_read(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    """Of layer 0 every input is known from the unrounded model: what a hook sees there."""
    blocks = blocks_of(hybrid, short_text)
    rounding = Calibrated(hybrid, blocks, torch.device("cpu"), feedback=False, dtype=torch.float32)
    quantise(hybrid, tmp_path / "out", Wanted("fp8", {"attention": "fp8"}, kv="fp8"), rounding)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model = load_model(hybrid, dtype=torch.float32, device=torch.device("cpu"))
    largest: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            largest[name] = max(largest.get(name, 0.0), float(args[0].abs().amax()))

        return hook

    for name, module in model.named_modules():
        if name.startswith("model.layers.0.") and name.endswith("_proj"):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(torch.from_numpy(blocks))
    stored = {
        name: name if f"{name}.input_scale" in tensors else name.replace("model.", "backbone.", 1) for name in largest
    }
    assert len(stored) == 2
    for name, there in stored.items():
        assert float(tensors[f"{there}.input_scale"]) == pytest.approx(largest[name] / 448, rel=1e-5)
    # Every expert reads the same stream, and engines take one scale for all.
    experts = {float(tensor) for name, tensor in tensors.items() if ".experts." in name and "up_proj.input" in name}
    assert len(experts) == 1
    kept = [float(tensor) for name, tensor in tensors.items() if name.endswith((".k_scale", ".v_scale"))]
    assert len(kept) == 2
    assert 0 < max(kept) < 0.1


def test_the_command(hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(hybrid), "--format", "nvfp4", "--keep", "mlp=fp8", "--data", str(short_text)]
    words += ["--samples", "4", "--sequence-length", "32", "-o", str(tmp_path / "out")]
    assert app.run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"]["weight_bytes"] == told["results"]["planned_bytes"]
    assert told["settings"]["keep"] == {"mlp": "fp8"}
    assert set(told["results"]["formats"]) == {"nvfp4", "fp8"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert app.run(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert app.run(["quantize", str(tmp_path / "out"), "--format", "int8", "-o", str(tmp_path / "two")]) == 2
    assert "is quantised (modelopt" in capsys.readouterr().err
    assert app.run(["quantize", str(hybrid), "--format", "int8", "-o", str(tmp_path / "two")]) == 0
    assert "without --data" in capsys.readouterr().err
    open_plain(tmp_path / "two", dequantise=True)


def test_a_text_that_is_too_short_or_of_other_tokens_is_refused(hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A word.")
    words = ["quantize", str(hybrid), "--format", "int8", "--data", str(tmp_path / "text.txt")]
    assert app.run([*words, "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    tokenizer = load_tokenizer(hybrid)
    tokenizer.unk_token = "<pad>"
    known = token_blocks(tokenizer, short_text, sequence_length=8)
    require_known(tokenizer, known, short_text)
    known[::4] = tokenizer.unk_token_id
    with pytest.raises(MinitronError, match=r"^2\d% of the tokens of .* are unknown to the model's tokenizer"):
        require_known(tokenizer, known, short_text)
    with pytest.raises(MinitronError, match="leave out --kv fp8"):
        Calibrated(hybrid, np.zeros((1, 4), np.int64), torch.device("cpu")).largest_kv("x")
