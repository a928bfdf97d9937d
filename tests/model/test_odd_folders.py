"""Folders that are not what they should be: each is refused in a sentence that names what is wrong, by all who read."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from importance.score.surgeon import removal_scores
from minitron.errors import MinitronError
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


WEIGHT_CASES: dict[str, tuple[Change, str]] = {
    "a dtype that is none": (header(dtype="F33"), "its header does not parse"),
    "a dtype of another width": (header(dtype="F16"), f"what its header says of {NORM} does not fit its bytes"),
    "a negative shape": (header(shape=[-1]), f"what its header says of {NORM} does not fit its bytes"),
    "a shape of another size": (header(shape=[3]), f"what its header says of {NORM} does not fit its bytes"),
    "tensors that overlap": (header(data_offsets=[0, 128]), "does not fit its bytes"),
    "metadata that are a list": (header(metadata=[]), "its header does not parse"),
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
    "a number of classes": (config(architectures=5), "architectures is 5; give a list"),
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_configs_that_are_none_are_refused(case: str, folder: Path) -> None:
    change, told = CONFIG_CASES[case]
    change(folder)
    for read in (read_spec, spec_if_known, load_model):
        with pytest.raises(MinitronError, match=told):
            read(folder)


TOKENIZER_CASES: dict[str, Change] = {
    "no tokens": replaced("tokenizer.json", "{}"),
    "half of it": replaced("tokenizer.json", '{"version": "1.0", "tr'),
    "a list of settings": replaced("tokenizer_config.json", "[]"),
    "a template in another encoding": lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("case", TOKENIZER_CASES)
def test_tokenizers_that_transformers_cannot_read_are_refused(case: str, folder: Path) -> None:
    TOKENIZER_CASES[case](folder)
    with pytest.raises(
        MinitronError, match=r"the tokenizer in .*model cannot be read \(.+\); copy the tokenizer files"
    ):
        load_tokenizer(folder)


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
