"""No code of a model, a dataset or a pickle is ever run, whatever a folder says and whoever answers a question."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import torch

from cli.app import run
from minitron.errors import MinitronError
from minitron.model.loading import build_model, load_model, load_tokenizer, require_buildable
from minitron.model.spec import read_spec

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = ("minitron", "importance", "distill", "judge", "pipeline", "cli", "benchmarks", "examples", "docs")

MUST_SAY: Final = {
    "from_pretrained": {"trust_remote_code": False},
    "from_config": {"trust_remote_code": False},
    "load_dataset": {"trust_remote_code": False},
    "HFLM": {"trust_remote_code": False},
    "simple_evaluate": {"confirm_run_unsafe_code": False},
}
"""What loads -> the arguments that each call has to give."""

READS_NO_CODE: Final = {"GenerationConfig"}
"""Classes whose from_pretrained takes no such argument, as they know JSON alone."""

NEVER: Final = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "os.system",
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(where, what is called, the call) of all of the project."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_every_loader_is_told_to_run_nothing() -> None:
    found = 0
    for where, called, node in calls():
        owner, _, name = called.rpartition(".")
        if name in MUST_SAY and owner not in READS_NO_CODE:
            found += 1
            wanted = dict(MUST_SAY[name])
            if name == "from_pretrained" and ("Model" in owner or "ForCausalLM" in owner or owner == "architecture"):
                wanted["use_safetensors"] = True
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            assert {key: given.get(key) for key in wanted} == wanted, where
    assert found >= 15


def test_nothing_that_runs_what_it_reads_is_called() -> None:
    assert [where for where, called, _ in calls() if called in NEVER] == []


MARKER: Final = "ran.txt"
MODULE: Final = """
from pathlib import Path
Path({marker!r}).write_text("the model's own code ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "ownwriting"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def own_code(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose config, architecture and tokenizer are Python files beside the weights; who asks is told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "own.py").write_text(MODULE.format(marker=str(tmp_path / MARKER)))
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "ownwriting", "auto_map": maps}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    maps_too = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | maps_too))
    return folder


@pytest.mark.parametrize("load", [load_model, load_tokenizer, build_model], ids=lambda load: load.__name__)
def test_a_models_own_code_is_refused(load: Callable[[Path], object], own_code: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError):
        load(own_code)
    assert not (tmp_path / MARKER).exists()


def test_a_models_own_code_is_refused_where_it_is_to_be_built(own_code: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="never runs"):
        require_buildable(own_code, read_spec(tiny_llama))
    assert not (tmp_path / MARKER).exists()


def test_a_tokenizers_own_code_is_refused_beside_a_known_model(
    own_code: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copyfile(tiny_llama / "config.json", own_code / "config.json")
    with pytest.raises(MinitronError, match="never runs"):
        load_tokenizer(own_code)
    assert not (tmp_path / MARKER).exists()


COMMANDS: Final = {
    "inspect": ["inspect", "MODEL"],
    "plan": ["plan", "MODEL", "--budget", "1GiB"],
    "compare": ["compare", "MODEL", "MODEL", "--gpu", "24GiB"],
    "score": ["score", "MODEL", "--data", "TEXT", "--output", "OUT"],
    "prune": ["prune", "MODEL", "--keep", "ffn=8", "--data", "TEXT", "--output", "OUT"],
    "eval": ["eval", "MODEL", "--text", "TEXT"],
    "distill": ["distill", "MODEL", "--teacher", "MODEL", "--data", "TEXT", "--output", "OUT"],
    "compress": ["compress", "MODEL", "--budget", "1MiB", "--data", "TEXT", "--output", "OUT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_it(
    name: str, own_code: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(own_code), "TEXT": str(short_text), "OUT": str(tmp_path / "out")}
    assert run([places.get(word, word) for word in COMMANDS[name]]) == 2
    assert "minitron: error: " in capsys.readouterr().err
    assert not (tmp_path / MARKER).exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["somebody/kernel", {"": "somebody/kernel@v1:run"}])
def test_code_of_the_hub_that_a_config_names_is_refused(
    key: str, value: object, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(MinitronError, match=f"{key} is 'somebody/kernel"):
        load_model(folder)


class Bomb:
    """Unpickled it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.place, "the pickle ran")


@pytest.mark.parametrize("type_known", [True, False])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_opened(file: str, type_known: bool, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / MARKER)))
    config = json.loads((folder / "config.json").read_text())
    # A type that no family reads is loaded by transformers alone.
    (folder / "config.json").write_text(json.dumps(config if type_known else config | {"model_type": "gpt_neox"}))
    with pytest.raises(MinitronError):
        load_model(folder)
    assert not (tmp_path / MARKER).exists()


def test_plain_pickled_weights_are_refused_too(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(MinitronError, match="pickled"):
        load_model(folder)
