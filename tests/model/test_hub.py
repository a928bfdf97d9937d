"""Names on the hub, against a local server that speaks its API: what is fetched, and what is said where nothing is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import tiny_models
import torch
from hub_server import COMMIT, Hub
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from minitron.errors import MinitronError
from minitron.measure.options import EvaluationOptions
from minitron.model import hub as client
from minitron.model.hub import HubName, parse_name
from minitron.model.sources import config_path, hub_name, local_folder, title
from minitron.model.spec import read_spec
from pipeline import evaluate, inspect, plan
from pipeline.planning import Planning

MODEL = Path("org/tiny")


@pytest.fixture
def server(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with org/tiny in one file and org/shards in several, an empty cache, and a working folder of its own."""
    root = tmp_path / "hub"
    shutil.copytree(tiny_llama, root / "org" / "tiny")
    (root / "org/tiny/pytorch_model.bin").write_bytes(b"pickled")
    (root / "org/tiny/original").mkdir()
    (root / "org/tiny/original/params.json").write_text("{}")
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(root / "org/shards", max_shard_size="20KB")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server.serving(root) as found:
        point_at(found.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        forget()
        yield found
    forget()


def point_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)


def forget() -> None:
    """As in a new process."""
    client.fetch_config.cache_clear()
    client._listing.cache_clear()


def test_names() -> None:
    tiny = HubName("org/tiny")
    assert parse_name("org/tiny") == parse_name("hf:org/tiny") == tiny
    assert parse_name("org/tiny@refs/pr/1") == HubName("org/tiny", "refs/pr/1")
    assert parse_name("hf:gpt2@main") == HubName("gpt2", "main")
    for path in ("gpt2", "/org/tiny", "../tiny", "~/tiny", "a/b/c", "org/config.json", "org/tiny.gguf", "org/"):
        assert parse_name(path) is None
    assert HubName("org/tiny", "v1").command == "hf download org/tiny --revision v1"


def test_a_path_that_exists_is_no_name(server: Hub, tiny_llama: Path) -> None:
    shutil.copytree(tiny_llama, MODEL)
    assert hub_name(MODEL) is None and config_path(MODEL) == MODEL / "config.json"
    assert not server.asked


def test_to_plan_the_config_alone_is_fetched(server: Hub, tiny_llama: Path) -> None:
    for name in (MODEL, Path("hf:org/tiny"), Path("org/tiny@main"), Path(f"org/tiny@{COMMIT}")):
        spec = read_spec(name)
        assert spec.sizes == read_spec(tiny_llama).sizes and title(name) == "tiny"
    found = plan(MODEL, Planning(budget=2**31, context=128, engine="vllm"))
    assert found.serve.startswith("vllm serve org/tiny --max-model-len 128")
    assert "--revision main" in plan(Path("org/tiny@main"), found.planning).serve
    assert set(server.files()) == {"config.json"}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["org/tiny", "org/shards"])
def test_inspect_fetches_headers(server: Hub, tiny_llama: Path, name: str, ranges: bool) -> None:
    server.ranges = ranges
    found, local = inspect(Path(name)), inspect(tiny_llama)
    assert found.to_json() == local.to_json()
    weights = [(path, wanted) for _, path, wanted in server.asked if path.endswith(".safetensors")]
    assert weights and all(wanted.startswith("bytes=0-") for _, wanted in weights)
    assert not list(Path("cache").rglob("*.safetensors"))


def test_a_header_longer_than_the_first_request(server: Hub, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    monkeypatch.setattr(client, "_FIRST_BYTES", 100)
    assert inspect(MODEL).to_json() == inspect(tiny_llama).to_json()


def test_all_that_is_needed_is_fetched_once(server: Hub, tiny_llama: Path, short_text: Path) -> None:
    steps: list[float] = []

    class Bar:
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            return

        def __call__(self, amount: float, note: str = "") -> None:
            steps.append(amount)

    totals: list[float] = []

    def progress(description: str, total: float, unit: str) -> Bar:
        totals.append(total)
        return Bar()

    folder = local_folder(MODEL, progress)
    assert folder.parent.name == "snapshots" and title(folder) == "tiny"
    assert {file.name for file in folder.iterdir()} == {file.name for file in tiny_llama.iterdir()}
    assert sum(steps) == totals[0]
    before = len(server.files())
    forget()
    assert local_folder(MODEL) == folder and len(server.files()) == before
    (one,) = evaluate([MODEL], short_text, EvaluationOptions(sequence_length=16, samples=2, speed=False))
    assert one.model == MODEL
    # The second set of weights, which transformers would read if the first were not there, is never fetched.
    assert "pytorch_model.bin" not in server.files() and "params.json" not in server.files()


def test_a_snapshot_serves_without_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_folder(Path("org/shards"))
    read_spec(MODEL)
    for offline in (True, False):
        with monkeypatch.context() as patch:
            if offline:
                patch.setattr(constants, "HF_HUB_OFFLINE", True)
            else:
                point_at("http://127.0.0.1:9", patch)
            forget()
            asked = len(server.asked)
            assert local_folder(Path("org/shards")) == folder
            assert inspect(Path("org/shards")).weight_bytes == inspect(folder).weight_bytes
            # Its config alone was fetched.
            assert read_spec(MODEL).sizes
            with pytest.raises(MinitronError, match=r"of org/tiny only a part is in the cache.*`hf download org/tiny`"):
                local_folder(MODEL)
            with pytest.raises(MinitronError, match="run `hf download org/none` where there is network") as error:
                read_spec(Path("org/none"))
            assert ("HF_HUB_OFFLINE is set" in str(error.value)) == offline
            assert len(server.asked) == asked


def test_what_the_hub_refuses_is_said_in_one_sentence(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(name: str) -> str:
        forget()
        with pytest.raises(MinitronError) as error:
            local_folder(Path(name))
        return str(error.value)

    assert "org/none is neither a folder here nor a model on the hub" in said("org/none")
    assert "org/tiny has no revision v9" in said("org/tiny@v9")
    server.token = "secret"
    assert "give a token in HF_TOKEN" in said("org/tiny")
    server.gated = True
    assert "org/tiny is gated: ask for access" in said("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "secret")
    forget()
    assert local_folder(MODEL).is_dir()
    server.broken = 503
    assert "(it answers 503)" in said("org/shards")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "holds no config.json: it is an adapter"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, r"holds no model.safetensors, but .*\(.bin\)"),
        ({"model-Q4_K_M.gguf": "x"}, "holds no config.json, but GGUF weights"),
        ({"config.json": ""}, "is not valid JSON"),
    ],
)
def test_what_is_no_checkpoint_is_said_for_what_it_is(server: Hub, files: dict[str, str], why: str) -> None:
    folder = server.root / "org" / "odd"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(MinitronError, match=why):
        inspect(Path("org/odd"))


def test_nothing_of_the_hub_is_imported_for_a_local_config(tiny_llama: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline import inspect\n"
        f"inspect(Path({str(tiny_llama)!r}))\n"
        "print([name for name in ('torch', 'huggingface_hub', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_logits_of_a_fetched_model_are_those_of_the_folder(server: Hub, tiny_llama: Path) -> None:
    from minitron.model.loading import load_model

    models = [load_model(folder, dtype=torch.float32) for folder in (local_folder(MODEL), tiny_llama)]
    ids = torch.arange(8)[None]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    assert json.loads((tiny_llama / "config.json").read_text())["vocab_size"] == tiny_models.VOCAB_SIZE
