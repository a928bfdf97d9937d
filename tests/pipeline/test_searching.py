"""How `compress` chooses: what it measures by, the race of the finalists, and layers before widths."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_hybrid

import pipeline.finalists
from cli.app import run
from minitron.cut.plan import load_plan
from minitron.cut.scores import load_scores
from minitron.files import read_json
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import read_spec


def arguments_of(model: Path, text: Path, output: Path, share: float = 0.75) -> list[str]:
    return [
        *("compress", str(model), "--data", str(text), "-o", str(output), "--context", "32", "--weights", "fp32"),
        *("--budget", str(round(Checkpoint(model).weight_bytes * share)), "--sequence-length", "32", "--samples", "2"),
        *("--layer-samples", "2", "--dtype", "fp32", "--distill-sequence-length", "32", "--batch-tokens", "64"),
        *("--tokens", "128", "--dtype", "fp32", "--no-speed", "--evaluate", "4", "--combinations", "4"),
        *("--trial-samples", "2", "--finalists", "1"),
    ]


@pytest.fixture
def arguments(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> list[str]:
    return arguments_of(tiny_hybrid, short_text, tmp_path / "run")


def test_what_is_chosen_was_measured_to_lose_least_and_is_what_is_built(arguments: list[str], tmp_path: Path) -> None:
    assert run(arguments) == 0
    search = read_json(tmp_path / "run" / "search.json")
    report = read_json(tmp_path / "run" / "report" / "report.json")
    losses = [verdict["measured"]["loss"] for verdict in search["measured"]["verdicts"]]
    assert losses == sorted(losses)
    assert search["finalists"] is None
    best, plan = search["measured"]["verdicts"][0], load_plan(tmp_path / "run" / "plan.json")
    assert list(plan.layers) == best["kept_layers"]
    built = read_spec(tmp_path / "run" / "pruned").named_sizes
    assert all(built[key] == size for key, size in best["sizes"].items() if key in built)
    assert [verdict["measured_loss"] for verdict in report["sieves"]["verdicts"]] == losses
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    # The plan in the report is the plan that was cut.
    assert load_plan(tmp_path / "run" / "report").to_json() == plan.to_json()


def test_the_text_of_trials_calibrates_nothing(arguments: list[str], short_text: Path, tmp_path: Path) -> None:
    assert run([*arguments, "--trial-text", str(short_text)]) == 2
    other = tmp_path / "other.txt"
    other.write_text("A quite different text is read by the judge, line after line of it. " * 60)
    assert run([*arguments, "--trial-text", str(other), "--overwrite"]) == 0


def test_without_measurements_scores_alone_decide(arguments: list[str], tmp_path: Path) -> None:
    assert run([*arguments, "--evaluate", "0"]) == 0
    assert not (tmp_path / "run" / "search.json").exists()
    assert read_json(tmp_path / "run" / "report" / "report.json")["sieves"] is None


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["perplexity", "task"])
def test_other_objectives(arguments: list[str], tmp_path: Path, objective: str) -> None:
    if objective == "task":
        items = [{"query": "Ben", "choices": [" eats", " finds"], "gold": place % 2} for place in range(4)]
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        task = tmp_path / "birds.yaml"
        task.write_text(
            "task: birds\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\ntest_split: test\n"
            "output_type: multiple_choice\ndoc_to_text: '{{query}}'\ndoc_to_choice: '{{choices}}'\n"
            "doc_to_target: '{{gold}}'\nmetric_list:\n  - metric: acc\n"
        )
        objective = f"task:{task}"
    assert run([*arguments, "--objective", objective]) == 0
    search = read_json(tmp_path / "run" / "search.json")["measured"]
    assert search["objective"] == objective
    measured = [verdict["measured"] for verdict in search["verdicts"]]
    assert [found["loss"] for found in measured] == sorted(found["loss"] for found in measured)
    assert any(found["loss"] != found["kl"] for found in measured)


@pytest.mark.parametrize("objective", ["task:", "accuracy"])
def test_an_objective_that_is_none(
    arguments: list[str], tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--objective", objective]) == 2
    assert "--objective" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_race_that_is_stopped_goes_on_with_the_next_finalist(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--finalists", "2", "--finalist-tokens", "64"]
    # Whatever is second, it is near enough.
    monkeypatch.setattr("pipeline.choosing.NEAR", 1e6)
    done: list[Path] = []
    distil = pipeline.finalists._distil

    def stop_in_the_second(*given: Any) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        distil(*given)
        done.append(given[2])

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.finalists, "_distil", stop_in_the_second)
        assert run(arguments) == 130
    (first,) = (tmp_path / "run" / "finalists").glob("*.json")
    tried = (tmp_path / "run" / "trials.jsonl").read_bytes()
    before = first.stat().st_mtime_ns
    assert run(arguments) == 0
    assert first.stat().st_mtime_ns == before
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == tried
    race = read_json(tmp_path / "run" / "search.json")["finalists"]
    after = [one["kl_after"] for one in race["finalists"]]
    assert len(after) == 2 and after[race["chosen"]] == min(after)
    assert race["finalists"][race["chosen"]]["reason"].startswith("chosen")
    # Weights of finalists do not stay.
    assert {path.suffix for path in (tmp_path / "run" / "finalists").iterdir()} == {".json"}
    verdicts = read_json(tmp_path / "run" / "report" / "report.json")["sieves"]["verdicts"]
    assert sum(verdict["distilled"] is not None for verdict in verdicts) == 2
    chosen = race["finalists"][race["chosen"]]
    assert list(load_plan(tmp_path / "run" / "plan.json").layers) == chosen["kept_layers"]


def test_layers_first_and_widths_by_scores_of_what_is_left(arguments: list[str], tmp_path: Path) -> None:
    assert run([*arguments, "--stages", "depth,width", "--layers", "4"]) == 0
    folder = tmp_path / "run"
    plan, shallow = load_plan(folder / "plan.json"), read_spec(folder / "depth")
    assert len(plan.layers) == len(shallow.layers) == 4
    load_scores(folder / "depth-scores.safetensors").require(shallow)
    assert read_spec(folder / "pruned").named_sizes == plan.target(read_spec(Path(arguments[1]))).named_sizes


def test_sizes_by_layer_lose_less_and_are_what_is_built(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two MLPs, the second of which writes next to nothing.
    model = save_hybrid(tmp_path / "model", pattern="M-*-")
    tensors = load_file(model / "model.safetensors")
    tensors["backbone.layers.3.mixer.down_proj.weight"] *= 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    arguments = [*arguments_of(model, short_text, tmp_path / "run", 0.9), "--sizes", "per-layer", "--leave", "hidden"]
    assert run([*arguments, "--leave", "layer"]) == 0
    search = read_json(tmp_path / "run" / "search.json")["per_layer"]
    assert search["loss"] < search["uniform_loss"]
    own = search["chosen"]["intermediate_size"]
    assert own["3"] < own["1"]
    plan, report = load_plan(tmp_path / "run" / "plan.json"), read_json(tmp_path / "run" / "report" / "report.json")
    chosen = report["candidates"][report["chosen_index"]]
    assert plan.to_json()["by_layer"] == chosen["by_layer_count"] == search["chosen"]
    assert chosen["spare_bytes"] >= 0
    for folder in ("pruned", "distilled"):
        built = read_spec(tmp_path / "run" / folder)
        assert built.family.name == "nemotron_h_puzzle"
        assert {str(layer): built.sizes_in(layer)["ffn"] for layer in (1, 3)} == own
        assert Checkpoint(tmp_path / "run" / folder).num_parameters == chosen["parameters"]
    for file in ("report.md", "report.html"):
        assert f"{own['1']} in layer 1, {own['3']} in layer 3" in (tmp_path / "run" / "report" / file).read_text()
    assert f"{own['3']} in 3" in (tmp_path / "run" / "pruned" / "README.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize("extra", [["--evaluate", "0"], ["--stages", "depth,width"], ["--params", "1M"], []])
def test_sizes_by_layer_are_refused_before_work(
    extra: list[str], tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*arguments_of(tiny_llama, short_text, tmp_path / "run"), "--sizes", "per-layer"]
    assert run([*arguments, *extra]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--sizes per-layer" in said and not (tmp_path / "run" / "scores.safetensors").exists()


def test_how_it_is_cut_is_up_to_the_user(tiny_llama_tied: Path, short_text: Path, tmp_path: Path) -> None:
    arguments = ["prune", str(tiny_llama_tied), "--data", str(short_text), "--sequence-length", "32", "--samples", "4"]
    arguments += ["--layer-scores", "none", "--dtype", "fp32", "--set", "hidden_size=24"]
    assert run([*arguments, "-o", str(tmp_path / "selected")]) == 0
    assert run([*arguments, "-o", str(tmp_path / "rotated"), "--rotate"]) == 0
    assert read_spec(tmp_path / "selected").is_tied
    assert not read_spec(tmp_path / "rotated").is_tied


def test_a_rotation_of_tied_weights_is_counted(tiny_llama_tied: Path, short_text: Path, tmp_path: Path) -> None:
    """What is cut by rotation has an output layer of its own, and the budget holds it."""
    budget = round(Checkpoint(tiny_llama_tied).weight_bytes * 1.1)
    arguments = ["prune", str(tiny_llama_tied), "--data", str(short_text), "--sequence-length", "32", "--samples", "4"]
    arguments += ["--layer-scores", "none", "--dtype", "fp32", "--context", "1", "--weights", "fp32"]
    arguments += ["--budget", str(budget), "--layers", "4", "--rotate", "--lattice", "hidden_size=24"]
    assert run([*arguments, "-o", str(tmp_path / "rotated")]) == 0
    assert not read_spec(tmp_path / "rotated").is_tied
    assert Checkpoint(tmp_path / "rotated").weight_bytes <= budget
