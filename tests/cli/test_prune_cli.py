"""`minitron prune` as it is typed."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from tiny_models import save_llama

from cli.app import run
from cli.schemas import schema
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import read_spec

SCORING = ["--samples", "2", "--sequence-length", "32", "--layer-samples", "2", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def scores(tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from importance.score.calibrate import calibrate
    from importance.score.options import ScoringOptions

    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    calibrate(
        tiny_hybrid,
        short_text,
        ScoringOptions(samples=2, sequence_length=32, layers="iterative", layer_samples=2, dtype="fp32"),
    ).save(path)
    return path


def test_sizes_by_hand_from_text_to_checkpoint(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    arguments = ["prune", str(tiny_hybrid), "--data", str(short_text), "-o", str(out), "--json", *SCORING]
    sizes = ["--set", "hidden_size=24", "--set", "mamba_num_heads=4", "--set", "num_hidden_layers=6"]
    assert run(arguments + sizes) == 0
    told = capsys.readouterr()
    assert "Scoring layers" in told.err
    document = json.loads(told.out)
    jsonschema.validate(document, schema("prune"))
    assert set(document) == {"output", "inputs", "settings", "results", "seconds"}
    assert document["results"]["weight_bytes"] == Checkpoint(out).weight_bytes
    assert document["results"]["sizes"]["hidden_size"] == read_spec(out).named_sizes["hidden_size"] == 24
    assert len(document["results"]["kept_layers"]) == len(read_spec(out).layers) == 6


def test_layers_of_one_kind_are_ranked_only_as_far_as_they_are_dropped(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round of scoring layers reads the model once for each layer that is left; the layers that stay are the same."""
    model, file = save_llama(tmp_path / "deep", num_hidden_layers=6, seed=3), tmp_path / "scores.safetensors"
    assert run(["score", str(model), "--data", str(short_text), *SCORING, "-o", str(file)]) == 0
    found = []
    for name, source in (("all", ["--scores", str(file)]), ("few", ["--data", str(short_text), *SCORING])):
        line = ["prune", str(model), "--set", "num_hidden_layers=4", *source, "-o", str(tmp_path / name), "--json"]
        capsys.readouterr()
        assert run(line) == 0
        told = capsys.readouterr()
        found.append(json.loads(told.out)["results"]["kept_layers"])
    assert found[0] == found[1] != list(range(4))
    # Of 2 sequences of 32 tokens, once without each of 6 layers and once of 5.
    assert f"of {(6 + 5) * 2 * 32:,} tokens" in told.err


def test_layers_are_scored_only_where_scores_choose_them(
    tiny_hybrid: Path, short_text: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prune", str(tiny_hybrid), "--set", "hidden_size=24", "--set", "mamba_num_heads=4"]
    assert run([*line, "--data", str(short_text), *SCORING, "-o", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().err
    assert "Scoring:" in told and "Scoring layers" not in told
    assert run([*line, "--scores", str(scores), "-o", str(tmp_path / "two")]) == 0
    one, two = (Checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one.headers.keys() == two.headers.keys()
    for name in one.headers:
        torch.testing.assert_close(one.read(name), two.read(name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("depth", [["--layers", "5"], ["--pattern", "ME*ME"]])
@pytest.mark.parametrize("sizes", [[], ["--set", "hidden_size=24"]])
def test_a_depth_is_kept_alone_and_beside_sizes(
    tiny_hybrid: Path, scores: Path, tmp_path: Path, depth: list[str], sizes: list[str]
) -> None:
    out = tmp_path / "small"
    assert run(["prune", str(tiny_hybrid), *depth, *sizes, "--scores", str(scores), "-o", str(out)]) == 0
    spec = read_spec(out)
    assert len(spec.layers) == 5 and (depth[0] == "--layers" or spec.letters == depth[1])
    assert spec.named_sizes["hidden_size"] == (24 if sizes else read_spec(tiny_hybrid).named_sizes["hidden_size"])


def test_what_no_scores_lead_to_is_refused_before_the_model_is_scored(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prune", str(tiny_hybrid), "--data", str(short_text), "-o", str(tmp_path / "small"), *SCORING]
    for sizes, why in (
        ("num_key_value_heads=1", "num_attention_heads = 4 is more than the 2 that are in the 1 groups that stay"),
        ("n_groups=1", "n_groups cannot be cut"),
    ):
        assert run([*line, "--set", sizes]) == 2
        told = capsys.readouterr().err
        assert why in told and "Scoring" not in told
    assert not (tmp_path / "small").exists()


def test_a_budget_is_kept(tiny_hybrid: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = round(Checkpoint(tiny_hybrid).weight_bytes * 0.75)
    out = tmp_path / "small"
    arguments = ["prune", str(tiny_hybrid), "--budget", str(budget), "--context", "32", "--weights", "fp32"]
    assert run([*arguments, "--scores", str(scores), "-o", str(out)]) == 0
    assert Checkpoint(out).weight_bytes < budget
    assert "The cut" in capsys.readouterr().out


def test_a_plan_is_carried_out_with_and_without_indices(tiny_hybrid: Path, scores: Path, tmp_path: Path) -> None:
    size = round(Checkpoint(tiny_hybrid).weight_bytes * 0.75)
    budget = ["--budget", str(size), "--context", "32", "--weights", "fp32"]
    with_indices, without = tmp_path / "with.json", tmp_path / "without.json"
    assert run(["plan", str(tiny_hybrid), *budget, "--scores", str(scores), "-o", str(with_indices)]) == 0
    assert run(["prune", str(tiny_hybrid), "--plan", str(with_indices), "-o", str(tmp_path / "one")]) == 0
    assert run(["plan", str(tiny_hybrid), *budget, "-o", str(without)]) == 0
    assert run(["prune", str(tiny_hybrid), "--plan", str(without), "-o", str(tmp_path / "two")]) == 2
    assert not (tmp_path / "two").exists()
    two = ["prune", str(tiny_hybrid), "--plan", str(without), "--scores", str(scores), "-o", str(tmp_path / "two")]
    assert run(two) == 0
    for name in ("one", "two"):
        assert Checkpoint(tmp_path / name).weight_bytes < size


def test_an_axis_without_activations_is_cut_by_weight_magnitude(
    tiny_hybrid: Path, scores: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    sizes = ["--set", "ssm_state_size=8", "--set", "head_dim=8"]
    assert run(["prune", str(tiny_hybrid), *sizes, "--scores", str(scores), "-o", str(out)]) == 0
    assert read_spec(out).named_sizes["ssm_state_size"] == 8


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "nothing says how small"),
        (["--set", "hidden_size=24"], "there are no scores"),
        (["--set", "hidden_size=24", "--gpu", "A10G"], "--set and --gpu both say"),
        (["--gpu", "A10G", "--budget", "1MiB"], "--gpu and --budget both say"),
        (["--set", "hidden_size=24", "--lattice", "hidden_size=24"], "--lattice needs a search, but --set makes none"),
        (["--set", "num_hidden_layers=6", "--layers", "5"], "--set num_hidden_layers and --layers both say"),
        (["--plan", "TEXT", "--pattern", "M"], "--plan says which layers stay, and so does --pattern"),
        (["--pattern", "MMMM", "--data", "TEXT"], "the pattern does not fit"),
        (
            ["--set", "num_attention_heads=3", "--data", "TEXT"],
            "does not divide into num_key_value_heads = 2 equal groups",
        ),
        (["--set", "hidden_size"], "is not NAME=VALUE"),
        (["--set", "hidden_size=x", "--scores", "SCORES"], "not a whole number"),
        (["--set", "hidden_size=24", "--scores", "SCORES", "--data", "TEXT"], "--scores and --data are both given"),
        (["--set", "hidden_size=24", "--scores", "/none"], "does not exist"),
        (["--set", "hidden_size=24", "--data", "/none", *SCORING], "does not exist"),
        (["--set", "hidden_size=64", "--scores", "SCORES"], "pruning only cuts"),
        (["--set", "num_hidden_layers=9", "--scores", "SCORES"], "9 layers cannot be kept of 8"),
        (["--budget", "1KiB", "--context", "32", "--scores", "SCORES"], "nothing fits into 1.000 KiB"),
        (["--gpu", "A10X", "--scores", "SCORES"], "A10"),
        (["--plan", "TEXT"], "not valid JSON"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_written(
    tiny_hybrid: Path,
    short_text: Path,
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    why: str,
) -> None:
    given = [{"SCORES": str(scores), "TEXT": str(short_text)}.get(word, word) for word in arguments]
    assert run(["prune", str(tiny_hybrid), "-o", str(tmp_path / "small"), *given]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_stays_unless_it_may_be_overwritten(
    tiny_hybrid: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    out.mkdir()
    (out / "precious").write_text("mine")
    arguments = ["prune", str(tiny_hybrid), "--set", "hidden_size=24", "--scores", str(scores), "-o", str(out)]
    assert run(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "precious").read_text() == "mine"
    assert run([*arguments, "--overwrite"]) == 0
    assert not (out / "precious").exists()


def test_the_model_itself_is_never_overwritten(
    tiny_hybrid: Path, scores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_hybrid / "model.safetensors").read_bytes()
    arguments = ["prune", str(tiny_hybrid), "--set", "hidden_size=24", "--scores", str(scores), "--overwrite"]
    for output in (tiny_hybrid, tiny_hybrid.parent):
        assert run([*arguments, "-o", str(output)]) == 2
    assert (tiny_hybrid / "model.safetensors").read_bytes() == before


def test_scores_of_another_model_are_refused(
    tiny_hybrid_latent: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert (
        run(["prune", str(tiny_hybrid_latent), "--set", "hidden_size=24", "--scores", str(scores), "-o", str(out)]) == 2
    )
    assert "another config.json" in capsys.readouterr().err
    assert not out.exists()
