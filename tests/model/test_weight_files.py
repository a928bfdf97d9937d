"""What a folder is: which of its files hold the weights, and what is said of one that holds none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.model.weight_files import notes
from pipeline import inspect

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def whole(folder: Path) -> Plan:
    spec = read_spec(folder)
    return Plan(spec.fingerprint, {}, tuple(range(len(spec.layers))))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_spec),
        ("model.safetensors", Checkpoint),
        ("model.safetensors", load_model),
        ("tokenizer.json", load_tokenizer),
        ("tokenizer_config.json", load_tokenizer),
    ],
)
def test_a_git_lfs_pointer_is_named(model: Path, name: str, read: Callable[[Path], object]) -> None:
    (model / name).write_text(POINTER)
    with pytest.raises(MinitronError, match=rf"{name} is a git-lfs pointer, .*git lfs pull"):
        read(model)


def test_a_pointer_to_a_shard_or_the_index_is_named(model: Path, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(Checkpoint(model).headers, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    Checkpoint(model).check(read_spec(model))
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        (model / name).write_text(POINTER)
        with pytest.raises(MinitronError, match=f"{name} is a git-lfs pointer"):
            Checkpoint(model)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "org/base"}'}, "it is an adapter of org/base; merge it"),
        ({"config.json": "", "pytorch_model.bin": "x"}, r"neither .*, but PyTorch's pickled weights \(.bin\)"),
        ({"config.json": "", "model-Q4_K_M.gguf": "x"}, "but GGUF weights; give the same model in safetensors"),
        ({"config.json": "", "consolidated.00.pth": "x"}, "in the format of their makers"),
        ({"config.json": "", "model-00001-of-00002.safetensors": "x"}, "shards without their index; copy"),
        ({"config.json": "", "model.fp32.safetensors": "x"}, "call the one to read model.safetensors"),
        ({"inner/config.json": "{}"}, "the model is in .*inner; give that"),
        ({"models--org--name/refs/main": "0"}, "it is the hub's cache, .*such as org/name"),
        ({"model.safetensors": "x"}, "holds no config.json; copy it from the original model"),
        ({}, "holds no config.json; give a Hugging Face checkpoint folder"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_said_for_what_it_is(
    files: dict[str, str], told: str, tiny_llama: Path, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((tiny_llama / name).read_text() if name == "config.json" else text)
    with pytest.raises(MinitronError, match=told):
        inspect(tmp_path)


def test_a_cached_model_is_called_by_its_name(tmp_path: Path, tiny_llama: Path) -> None:
    root = tmp_path / "models--org--name"
    folder = root / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, file in enumerate(tiny_llama.iterdir()):
        shutil.copy(file, root / "blobs" / str(number))
        (root / "blobs" / str(number)).chmod(0o444)
        (folder / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    with pytest.raises(MinitronError, match="it is the hub's cache of org/name; give that name"):
        inspect(root)
    prune(folder, whole(folder), tmp_path / "small")
    assert (tmp_path / "small" / "README.md").read_text().count("`name`") == 1
    assert not any(file.is_symlink() for file in (tmp_path / "small").iterdir())
    (folder / "model.safetensors").unlink()
    with pytest.raises(MinitronError, match="has only a part of org/name here; give that name"):
        inspect(folder)


def test_an_adapter_beside_the_weights_is_refused_by_all(model: Path, tmp_path: Path) -> None:
    plan = whole(model)
    (model / "adapter_config.json").write_text("{}")
    for read in (inspect, load_model, lambda folder: prune(folder, plan, tmp_path / "small")):
        with pytest.raises(MinitronError, match=r"holds an adapter .* beside the model's weights; merge the two"):
            read(model)


def test_other_sets_of_weights_are_passed_over_with_a_note(model: Path, tmp_path: Path) -> None:
    assert notes(model) == []
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        (model / name).write_bytes(b"not read")
    for name in ("pytorch_model.bin", "model.safetensors.index.json", "consolidated.safetensors.index.json"):
        (model / name).write_text("{}")
    (model / "params.json").write_text("{}")
    (model / "training_args.bin").write_bytes(b"of the trainer")
    told: list[str] = []
    inspect(model, note=told.append)
    assert len(told) == 1 and told[0].endswith(
        "model.safetensors is read, as transformers does, and consolidated.safetensors, model-*.safetensors, "
        "pytorch_model.bin passed over."
    )
    prune(model, whole(model), tmp_path / "small")
    made = {file.name for file in (tmp_path / "small").iterdir()}
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert made == kept | {"model.safetensors", "README.md", "minitron.json"}


def test_the_file_that_the_config_names_is_read(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert {header.file.name for header in Checkpoint(model).headers.values()} == {"other.safetensors"}
    load_model(model)
    prune(model, whole(model), tmp_path / "small")
    load_model(tmp_path / "small")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_written_files_have_the_mode_that_the_umask_gives(model: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        prune(model, whole(model), tmp_path / "small")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "small").iterdir()}
    assert load_file(tmp_path / "small" / "model.safetensors") and set(modes.values()) == {0o666 & ~umask}
