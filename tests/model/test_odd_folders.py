"""Folders that are not what they should be: each is refused in a sentence that names what is wrong, by all who read."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from importance.score.surgeon import removal_scores
from minitron.errors import MinitronError, NotFinite
from minitron.memory.workload import Workload
from minitron.model.checkpoint import Checkpoint
from minitron.model.configs import spec_if_known
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec, spec_of
from minitron.search.depth import freed_bytes

Change = Callable[[Path], Any]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def header(**said: Any) -> Change:
    """What the header says of one tensor, or of the file."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        found = json.loads(data[8 : 8 + length])
        if "metadata" in said:
            found["__metadata__"] = said["metadata"]
        else:
            found[NORM] |= said
        text = json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


def index(**said: Any) -> Change:
    """An index of one shard."""

    def change(folder: Path) -> None:
        names = dict.fromkeys(load_file(folder / WEIGHTS), "model-00001-of-00001.safetensors")
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names} | said))

    return change


def config(**said: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | said
        (folder / "config.json").write_text(json.dumps(found))

    return change


def replaced(name: str, data: str) -> Change:
    return lambda folder: (folder / name).write_text(data)


def a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def more_bytes(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x" * 100)


def renamed(name: str) -> Change:
    """A tensor under another name."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        found = json.loads(data[8 : 8 + length])
        found[name] = found.pop(NORM)
        text = json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


def spaced(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length + 1) + b" " + data[8:])


def a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def a_link_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


WEIGHT_CASES: dict[str, tuple[Change, str]] = {
    "a dtype that is none": (header(dtype="F33"), "its header does not parse"),
    "a dtype of another width": (header(dtype="F16"), f"what its header says of {NORM} does not fit its bytes"),
    "a negative shape": (header(shape=[-1]), f"what its header says of {NORM} does not fit its bytes"),
    "a shape of another size": (header(shape=[3]), f"what its header says of {NORM} does not fit its bytes"),
    "tensors that overlap": (header(data_offsets=[0, 128]), "does not fit its bytes"),
    "metadata that are a list": (header(metadata=[]), "its header does not parse"),
    "a header behind a space": (spaced, "its header does not parse"),
    "a dimension that no machine has": (header(shape=[2**63, 0], data_offsets=[0, 0]), "does not fit its bytes"),
    "a name of no letters": (renamed(""), "'' is no name of a tensor"),
    "a name with a NUL": (renamed("a\0b"), "is no name of a tensor"),
    "a name of 5,000 letters": (renamed("x" * 5000), "x+'?: is no name of a tensor|xx+ is no name of a tensor"),
    "a pipe in place of the weights": (a_pipe, "is neither a file nor a folder"),
    "a link to itself": (a_link_to_itself, "is a symbolic link that leads nowhere"),
    "bytes behind the tensors": (more_bytes, "has 100 bytes after its tensors"),
    "a folder in place of the weights": (a_folder, "is a folder, not a file of weights"),
    "a list in an index": (index(weight_map={NORM: ["a"]}), r"names \['a'\], a file outside the folder"),
    "an index without metadata": (index(metadata=None), "has no metadata, which transformers reads"),
    "an index with no end": (lambda folder: (index()(folder), (folder / INDEX).write_text("[" * 10**5)), "JSON"),
    "weights that are not there": (config(transformers_weights="x.safetensors"), "names x.safetensors as its"),
    "weights of no name": (config(transformers_weights=["x"]), r"transformers_weights is \['x'\]"),
}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("case", WEIGHT_CASES)
def test_weights_that_nobody_can_read_are_refused_from_their_headers(case: str, folder: Path) -> None:
    change, told = WEIGHT_CASES[case]
    change(folder)
    with pytest.raises(MinitronError, match=told):
        Checkpoint(folder)
    with pytest.raises(MinitronError, match=told):
        load_model(folder)


CONFIG_CASES: dict[str, tuple[Change, str]] = {
    "a list": (replaced("config.json", "[1]"), "is no config.json: it holds a list"),
    "null": (replaced("config.json", "null"), "is no config.json: it holds a NoneType"),
    "brackets without an end": (replaced("config.json", "[" * 10**5), "is not valid JSON"),
    "a number of too many digits": (replaced("config.json", "1" * 5000), "is not valid JSON"),
    "a list of types": (config(model_type=["llama"]), r"model_type is \['llama'\]"),
    "a document of 200 floors": (replaced("config.json", '{"a":' * 200 + "1" + "}" * 200), "more than 100 deep"),
    "a width that no machine has": (config(hidden_size=2**64), "hidden_size is 18446744073709551616, which no model"),
    "a width of a million million": (config(hidden_size=2**30), "hidden_size is 1073741824; Minitron reads at most"),
    "ten million layers": (config(num_hidden_layers=10**7), "num_hidden_layers is 10000000; Minitron reads at most"),
    "a dtype of our own": (config(dtype="bf16"), "dtype is 'bf16', which torch does not know; write one of bfloat16"),
    "a number of classes": (config(architectures=5), "architectures is 5; give a list"),
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_configs_that_are_none_are_refused(case: str, folder: Path) -> None:
    change, told = CONFIG_CASES[case]
    change(folder)
    for read in (read_spec, spec_if_known, load_model):
        with pytest.raises(MinitronError, match=told):
            read(folder)


def tokenizer_config(**said: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "tokenizer_config.json").read_text()) | said
        (folder / "tokenizer_config.json").write_text(json.dumps(found))

    return change


def tokenizer_file(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / "tokenizer.json").read_text()
        assert old in text
        (folder / "tokenizer.json").write_text(text.replace(old, new, 1))

    return change


TOKENIZER_CASES: dict[str, Change] = {
    "no tokens": replaced("tokenizer.json", "{}"),
    "a list of settings": replaced("tokenizer_config.json", "[]"),
    "a length that is a text": tokenizer_config(model_max_length="long"),
    "a class that does not fit its vocabulary": tokenizer_config(tokenizer_class="BertTokenizer"),
    "words that are not numbered": tokenizer_file('"id": 0', '"id": "0"'),
    "half of a pair": tokenizer_file('"<pad>"', '"\\ud800"'),
    "a template in another encoding": lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
}


def test_half_a_tokenizer_is_refused_by_its_name(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "tr')
    with pytest.raises(MinitronError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(folder)


@pytest.mark.parametrize("case", TOKENIZER_CASES)
def test_tokenizers_that_transformers_cannot_read_are_refused(case: str, folder: Path) -> None:
    TOKENIZER_CASES[case](folder)
    with pytest.raises(
        MinitronError, match=r"the tokenizer in .*model (cannot be read|does not work) \(.+\); copy the tokenizer files"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "generation_config.json holds no JSON object"),
        ('{"watermarking_config": 5}', "transformers cannot read .*generation_config.json"),
    ],
)
def test_a_generation_config_is_blamed_for_itself(text: str, told: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(MinitronError, match=told):
        load_model(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_by_all_who_read_them(number: float, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = number
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    told = "model.layers.2.mlp.up_proj.weight holds numbers that are NaN or infinite"
    for read in (load_model, lambda folder: list(Checkpoint(folder).tensors())):
        with pytest.raises(NotFinite, match=told):
            read(folder)
    with pytest.raises(NotFinite, match=told):
        Checkpoint(folder).tensor("model.layers.2.mlp.up_proj.weight")


def test_large_weights_are_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"][:] = 3e38
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert torch.isinf(Checkpoint(folder).tensor("lm_head.weight").sum())


def test_weights_of_another_size_are_named_by_who_loads_them(folder: Path) -> None:
    config(hidden_size=48)(folder)
    with pytest.raises(
        MinitronError, match=r"lm_head.weight has the shape \[300, 32\], but config.json gives \[300, 48"
    ):
        load_model(folder)


def test_activations_that_are_no_numbers_are_not_scored() -> None:
    with pytest.raises(MinitronError, match="activations are not finite on the calibration text"):
        removal_scores(torch.ones(2, 2), np.full((2, 2), np.nan), 0.1)


def test_a_layer_of_one_frees_its_bytes(folder: Path) -> None:
    config(num_hidden_layers=1)(folder)
    spec = spec_of(json.loads((folder / "config.json").read_text()))
    workload = Workload(128)
    # Attention of 4 heads and 2 KV heads of 12, a gated MLP of 56, two norms, all of 32 channels in bf16; a cache of
    # 128 tokens with keys and values.
    weights = 32 * 12 * (4 + 2 + 2 + 4) + 3 * 32 * 56 + 2 * 32
    assert freed_bytes(spec, workload, 0) == 2 * weights + 128 * 2 * 2 * 12 * 2


@pytest.mark.parametrize(("text", "where"), [("[1]", ""), ('{"quantization": "x"}', " under quantization")])
def test_what_says_how_weights_are_quantised_is_an_object(
    tiny_llama: Path, tmp_path: Path, text: str, where: str
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "hf_quant_config.json").write_text(text)
    with pytest.raises(MinitronError, match=f"hf_quant_config.json holds no JSON object{where}; copy it again"):
        read_spec(folder)


@pytest.mark.parametrize("method", ["compressed-tensors", "modelopt"])
def test_targets_of_a_group_are_names(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    group = {"targets": 5, "weights": {"num_bits": 8, "type": "float"}}
    said = {"quantization_config": {"quant_method": method, "config_groups": {"group_0": group}}}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | said))
    with pytest.raises(MinitronError, match="targets is 5; it must be a list of names of modules"):
        _ = read_spec(folder).quantisation
