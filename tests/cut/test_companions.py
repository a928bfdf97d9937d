"""What stands beside the weights: what is copied, what is left behind, and which links are followed."""

import shutil
from pathlib import Path

import pytest

from cli.app import run
from minitron.cut.companions import companions, copy_companions
from minitron.errors import MinitronError

SECRET = "root:x:0:0"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json", "LICENSE", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return folder


def copied(source: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out")
    return sorted(file.name for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("modeling_own.py", "MODELING.PY", "run.sh", "kernel.so", "own.cpython-311.pyc", "use.ipynb"),
        *("x.pkl", "x.pickle", "x.joblib", "pytorch_model.bin", "training_args.bin", "optimizer.pt"),
        *("model.SafeTensors", "x.gguf", "minitron.json", "README.md"),
    ],
)
def test_code_pickles_and_weights_stay_behind(name: str, source: Path, tmp_path: Path) -> None:
    (source / name).write_text("{}")
    assert copied(source, tmp_path) == ["LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", ["generation_config.json", "notes", "LICENSE", "config.json", "minitron.json"])
@pytest.mark.parametrize("way", ["absolute", "relative", "through a folder", "chain"])
def test_a_link_out_of_the_folder_is_refused(name: str, way: str, source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(SECRET)
    (source / name).unlink(missing_ok=True)
    if way == "chain":
        (source / "between").symlink_to(secret)
    if way == "through a folder":
        (source / "up").symlink_to("..")
    places = {"absolute": secret, "relative": "../secret.json", "through a folder": "up/secret.json"}
    (source / name).symlink_to(places.get(way, "between"))
    with pytest.raises(MinitronError, match=r"is a link to .*secret\.json, outside its folder"):
        companions(source)
    with pytest.raises(MinitronError, match="outside its folder"):
        copied(source, tmp_path)
    assert not [file for file in (tmp_path / "out").iterdir() if SECRET in file.read_text()]


def test_links_inside_the_folder_and_a_link_to_the_folder_are_followed(source: Path, tmp_path: Path) -> None:
    (source / "vocab.json").symlink_to("tokenizer.json")
    (tmp_path / "alias").symlink_to(source)
    assert "vocab.json" in copied(tmp_path / "alias", tmp_path)


def test_a_snapshot_of_the_hubs_cache_is_links_to_its_blobs_alone(source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / "abc"
    shutil.move(source, snapshot)
    (snapshot / "LICENSE").rename(repository / "blobs" / "0123")
    (snapshot / "LICENSE").symlink_to("../../blobs/0123")
    assert "LICENSE" in copied(snapshot, tmp_path)
    (repository / "refs").write_text(SECRET)
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../refs")
    with pytest.raises(MinitronError, match="outside its folder"):
        companions(snapshot)


@pytest.mark.parametrize("command", ["prune", "distill"])
def test_commands_refuse_before_they_write(
    command: str, tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").symlink_to("/etc/passwd")
    arguments = {
        "prune": ["prune", str(folder), "--set", "intermediate_size=16", "--data", str(short_text)],
        "distill": ["distill", str(folder), "--teacher", str(tiny_llama), "--data", str(short_text), "--tokens", "1M"],
    }
    assert run([*arguments[command], "--output", str(tmp_path / "out")]) == 2
    assert "generation_config.json is a link to /etc/passwd" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]
