"""`compress --steps-of`: a large cut in several, with distillation between; the teacher stays the whole model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.chain
from cli.app import run
from cli.schemas import schema
from distill.recipe import Recipe
from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.model.checkpoint import Checkpoint
from minitron.model.identity import weights_of
from minitron.model.spec import read_spec
from minitron.search.search_steps import LatticeOptions, default_sizes, share_left
from pipeline import Compression, Planning
from pipeline.several_cuts import cuts_of, earlier_cut, parameters_after

SMALL = [
    *("--context", "32", "--weights", "fp32", "--sequence-length", "32", "--samples", "2", "--layer-samples", "2"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "384", "--dtype", "fp32"),
    *("--no-speed", "--evaluate", "2", "--combinations", "4", "--trial-samples", "2", "--finalists", "0"),
]


@pytest.fixture
def arguments(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> list[str]:
    budget = round(Checkpoint(tiny_hybrid).weight_bytes * 0.75)
    return [
        *("compress", str(tiny_hybrid), "--data", str(short_text), "--budget", str(budget), "--steps-of", "0.25"),
        *("-o", str(tmp_path / "run"), *SMALL),
    ]


def request(model: Path, **fields: Any) -> Compression:
    return Compression(
        *(model, Path("run"), model / "text", Planning(budget=60 * 1024, context=32), Recipe(tokens=61_440)), **fields
    )


def test_two_cuts_with_distillation_between_and_one_teacher(
    arguments: list[str], tiny_hybrid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = pipeline.chain.STEPS["distill"]

    def stop_in_the_second(asked: Compression, *rest: Any) -> None:
        if asked.output.name == "run":
            raise KeyboardInterrupt
        stopped[1](asked, *rest)

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.chain.STEPS, "distill", (stopped[0], stop_in_the_second))
        assert run(arguments) == 130
    folder, first = tmp_path / "run", tmp_path / "run" / "cut-1"
    written = (first / "distilled" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("compress"))
    assert (first / "distilled" / "model.safetensors").stat().st_mtime_ns == written
    # Each takes at most its share, and the last one is what was asked for.
    sizes = [read_spec(each).parameters().total for each in (tiny_hybrid, first / "distilled", folder / "distilled")]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[1] >= 0.75 * sizes[0] - 2_000
    assert Checkpoint(folder / "distilled").weight_bytes <= int(arguments[arguments.index("--budget") + 1])
    # The second is cut from the first, and both are taught by the whole model, whose stream both know.
    whole, cuts = weights_of(tiny_hybrid), document["results"]["cuts"]
    assert list(cuts) == ["cut-1"] and set(cuts["cut-1"]["steps"]) == {"score", "plan", "prune", "distill"}
    pruned = read_json(folder / "pruned" / "minitron.json")
    assert pruned["source"]["config"] == read_spec(first / "distilled").fingerprint
    assert whole is not None and whole["sha256"] in [one["weights"] for one in pruned["stream"]]
    tokens = [each["steps"]["distill"]["results"]["tokens"] for each in (cuts["cut-1"], document["results"])]
    assert tokens == [128, 256]
    models = document["results"]["models"]
    assert models["teacher"]["parameters"] == sizes[0]
    assert models["teacher"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert not (first / "evaluation.json").exists()
    report = read_json(folder / "report" / "report.json")
    assert report["model"]["name"] == f"{tiny_hybrid.name} after cut-1"
    # There is nothing left to do, and other cuts are another run.
    assert run(arguments) == 0
    assert "cut-1: " in capsys.readouterr().out
    assert (first / "distilled" / "model.safetensors").stat().st_mtime_ns == written
    arguments[arguments.index("0.25")] = "0.5"
    assert run(arguments) == 2
    assert "steps_of" in capsys.readouterr().err


def test_a_dry_run_tells_of_every_cut(arguments: list[str], capsys: Any) -> None:
    assert run([*arguments, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]["dry_run"]
    assert any(note.startswith("2 cuts: ") for note in found["notes"])
    assert "pruned and distilled model of cut 1" in found["writes"]
    # Both score; of scores that are given the second one still does.
    arguments[arguments.index("0.25")] = "0.9"
    assert run([*arguments, "--dry-run", "--json"]) == 0
    once = json.loads(capsys.readouterr().out)["results"]["dry_run"]
    assert not any("cuts" in note for note in once["notes"])
    assert found["writes"]["scores"] == 2 * once["writes"]["scores"]


@given(st.floats(0.01, 0.99), st.integers(10**5, 10**12), st.floats(0.01, 1.5))
def test_cuts_are_of_one_factor_and_none_takes_more_than_its_share(share: float, whole: int, left: float) -> None:
    last = round(whole * left)
    after = parameters_after(share, whole, last)
    assert after[-1] == last
    if last >= whole:
        assert after == [last]
        return
    ratios = [now / before for before, now in zip([whole, *after], after, strict=False)]
    # Parameters are whole numbers, and 1,000 of them the fewest here.
    assert max(ratios) - min(ratios) < 2e-3
    assert min(ratios) >= 1 - share - 1e-3
    # One cut fewer would take too much.
    assert len(after) == 1 or (last / whole) ** (1 / (len(after) - 1)) < 1 - share + 1e-6


def test_half_of_the_parameters_are_two_cuts_of_at_most_30_percent() -> None:
    assert parameters_after(0.3, 1_000_000, 500_000) == [707_107, 500_000]
    assert parameters_after(0.3, 1_000_000, 700_000) == [700_000]
    assert parameters_after(0.5, 1_000_000, 500_000) == [500_000]


def test_a_cut_before_the_last_is_limited_by_parameters_alone(tiny_hybrid: Path) -> None:
    """It has a third of the tokens where there are two, as benchmarks/steps.py measured it, in its own order."""
    asked = request(tiny_hybrid, steps_of=0.3)
    first = earlier_cut(asked, 1, [100_000, 50_000])
    assert first.recipe.total_tokens == asked.recipe.total_tokens / 3 and first.recipe.seed != asked.recipe.seed
    assert first.teacher == first.model == tiny_hybrid and first.output == Path("run/cut-1")
    assert first.planning.params == 100_000 and first.planning.budget is None


def test_more_cuts_than_steps_of_training_are_refused(tiny_hybrid: Path) -> None:
    spec, asked = read_spec(tiny_hybrid), request(tiny_hybrid, steps_of=0.01)
    whole = spec.parameters().total
    assert asked.recipe.total_steps == 60
    assert len(cuts_of(asked, spec, round(0.6 * whole))) == 51
    with pytest.raises(MinitronError, match=r"--steps-of 0\.01 makes 69 cuts, and there are 60 steps"):
        cuts_of(asked, spec, round(0.5 * whole))
    # One cut is what every run has.
    assert cuts_of(replace(asked, recipe=Recipe(steps=1), steps_of=0.9), spec, round(0.5 * whole)) == [whole // 2]


def test_shares_of_a_size_are_those_of_the_whole_model(tiny_hybrid: Path) -> None:
    whole = read_spec(tiny_hybrid)
    now = whole.resized({"intermediate_size": 48}, range(len(whole.layers)))
    assert whole.named_sizes["intermediate_size"] == 56
    for most, least in ((0.5, 32), (0.25, 48), (0.125, 48)):
        share = share_left("ffn", most, whole, now)
        sizes = default_sizes(now, "ffn", LatticeOptions(most={"ffn": share}, multiples={"ffn": 8}))
        assert min(sizes) == least
    assert share_left("layer", 0.4, whole, now) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--steps-of", "1"], "is no share"),
        (["--steps-of", "0"], "is no share"),
        (["--steps-of", "nan"], "is no share"),
        (["--budget", "1MiB", "--budget", "2MiB", "--steps-of", "0.3"], "goes one way to one model"),
    ],
)
def test_what_is_no_share_is_refused(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: Any, more: list[str], told: str
) -> None:
    asked = ["compress", str(tiny_hybrid), "--data", str(short_text), "-o", str(tmp_path / "run"), *SMALL]
    assert run([*asked, *([] if "--budget" in more else ["--budget", "1MiB"]), *more]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_large_cut_is_told_of_several(tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: Any) -> None:
    share = ["--params", str(round(read_spec(tiny_hybrid).parameters().total * 0.58))]
    asked = ["compress", str(tiny_hybrid), "--data", str(short_text), "-o", str(tmp_path / "run"), *SMALL, *share]
    assert run([*asked, "--evaluate", "0"]) == 0
    assert "with --steps-of 0.3 it is made in several" in " ".join(capsys.readouterr().err.split())
