"""The Python interface: the same as the commands, without a word printed."""

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from distilling import RECIPE

from minitron import builtin
from minitron.errors import MinitronError, NothingFits
from minitron.measure.options import EvaluationOptions
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import read_spec
from pipeline import (
    Distillation,
    Planning,
    Pruning,
    ScoringOptions,
    compare,
    distill,
    evaluate,
    inspect,
    plan,
    prune,
    score,
    solve,
    stand,
)

ROOT = Path(__file__).parents[2]
SCORING = ScoringOptions(samples=2, sequence_length=32, layer_samples=2, dtype="fp32")


def test_planning_imports_no_torch() -> None:
    code = """
        import sys
        import pipeline
        light = {"torch", "transformers", "numpy", "typer"} & set(sys.modules)
        assert not light, light
        from minitron import builtin
        found = pipeline.plan(builtin.MODEL, pipeline.Planning(budget=20_000_000, context=2048))
        assert found.result.best.fits and found.document()["candidates"]
        heavy = {"torch", "transformers", "typer", "safetensors"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_a_model_is_looked_at_before_it_is_cut(tiny_hybrid: Path, tmp_path: Path) -> None:
    found, spec = inspect(tiny_hybrid), read_spec(tiny_hybrid)
    assert found.weight_bytes == Checkpoint(tiny_hybrid).weight_bytes
    assert found.spec.named_sizes == spec.named_sizes and found.mtp == 0
    planning = Planning(budget=found.weight_bytes * 3 // 4, context=32, weights="fp32")
    assert not stand(tiny_hybrid, planning).fits
    planned = plan(tiny_hybrid, planning)
    assert planned.result.best.footprint.total <= found.weight_bytes * 3 // 4
    planned.save(tmp_path / "report")
    assert (tmp_path / "report" / "plan.json").is_file()
    with pytest.raises(NothingFits):
        plan(tiny_hybrid, Planning(budget=1024, context=32))
    longest = solve(tiny_hybrid, Planning(gpu="A10G"), "context")
    assert longest.standing.fits and longest.answer.question == "context"
    rows = compare([tiny_hybrid], ["A10G", "H200"], planning)
    assert [row.gpu for row in rows] == ["A10G", "H200"] and all(row.fits for row in rows)


def test_from_a_text_to_a_student_in_single_steps(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes: list[str] = []
    scores = score(
        tiny_hybrid, short_text, SCORING, output=tmp_path / "scores.safetensors", device="cpu", note=notes.append
    )
    assert len(notes) == 1 and notes[0].startswith("Scoring took")
    planning = Planning(budget=Checkpoint(tiny_hybrid).weight_bytes * 3 // 4, context=32, weights="fp32")
    plan(tiny_hybrid, planning, scores=scores).save(tmp_path / "plan.json")
    cut = prune(
        Pruning(tiny_hybrid, tmp_path / "small", plan=tmp_path / "plan.json", scores=tmp_path / "scores.safetensors")
    )
    assert cut.target.named_sizes == read_spec(tmp_path / "small").named_sizes
    assert cut.pruned.weight_bytes == Checkpoint(tmp_path / "small").weight_bytes < cut.pruned.source_weight_bytes
    request = Distillation(tmp_path / "small", tiny_hybrid, short_text, tmp_path / "student", device="cpu")
    found = distill(request, RECIPE, note=notes.append)
    assert found.is_first and found.result.steps == RECIPE.steps and len(found.stages) == 1
    assert len(notes) > 1 and notes[1].startswith("Student before training")
    assert "residual stream (--stream-weight 20)" in notes[2]
    options = EvaluationOptions(sequence_length=16, samples=2, dtype="fp32", speed=False)
    folders = [tmp_path / "small", tmp_path / "student"]
    pruned, student = evaluate(folders, short_text, options, against=tiny_hybrid, device="cpu")
    assert pruned.parameters == student.parameters
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Planning(batch=0), "batch is 0; give 1 or more"),
        (lambda: Planning(engine="tgi"), "no engine 'tgi'; choose one of plain, vllm"),  # type: ignore[arg-type]
        (lambda: ScoringOptions(samples=0), "samples is 0"),
        (lambda: ScoringOptions(layers="all"), "no layers 'all'"),  # type: ignore[arg-type]
        (lambda: EvaluationOptions(dtype="fp8"), "choose one of bf16, fp32"),  # type: ignore[arg-type]
        (lambda: Pruning(Path("a"), Path("b")), "nothing says how small"),
        (lambda: Pruning(Path("a"), Path("b"), Planning(gpu="A10G"), sizes={"hidden_size": 8}), "both say how small"),
    ],
)
def test_requests_check_themselves(make: object, words: str) -> None:
    with pytest.raises(MinitronError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.slow
def test_the_example_does_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = importlib.util.spec_from_file_location("compress_example", ROOT / "examples" / "compress.py")
    assert specification is not None and specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    # The built-in model is no tiny one: an eighth of the text takes an eighth of the time.
    monkeypatch.setattr(example, "SEQUENCE_LENGTH", 64)
    few = ["--tokens", "128", "--samples", "2", "--evaluate", "0"]
    found = example.main(["--output", str(tmp_path / "run"), *few])
    assert list(found.models) == ["teacher", "pruned", "distilled"]
    assert found.models["teacher"]["parameters"] == read_spec(builtin.MODEL).parameters().total
    assert Checkpoint(found.distilled).num_parameters == found.models["distilled"]["parameters"]
    assert (found.report / "report.html").is_file()
    assert f"The compressed model: {found.distilled}" in capsys.readouterr().out
