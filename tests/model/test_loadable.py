"""What transformers loads is read here too, and by all alike: headers, whole models, layers, cuts, trained students."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.run.output import write_student
from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.layerwise import LayerwiseModel
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import ModelSpec, read_spec, spec_of
from pipeline import inspect

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
IDS = torch.arange(3, 27).reshape(2, 12)
EMBEDDING = "model.embed_tokens.weight"


def other_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors[EMBEDDING].flip(0).clone()}


def same_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors[EMBEDDING].clone()}


def head_alone(tensors: Tensors) -> Tensors:
    return {("lm_head.weight" if name == EMBEDDING else name): tensor for name, tensor in tensors.items()}


def no_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def frequencies(tensors: Tensors) -> Tensors:
    return tensors | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(4)}


def singular(tensors: Tensors) -> Tensors:
    """As transformers before 5.23 saved NemotronH."""
    renamed = {"backbone.embeddings.weight": "backbone.embedding.weight"}
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def untold_block(tensors: Tensors) -> Tensors:
    """A multi-token-prediction block, of which the config says nothing."""
    return tensors | {"mtp.layers.0.eh_proj.weight": torch.ones(32, 64), "mtp.layers.0.norm.weight": torch.ones(32)}


def as_is(tensors: Tensors) -> Tensors:
    return tensors


CASES: dict[str, tuple[str, Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "a tied head that differs": ("tiny_llama_tied", other_head, {}, "transformers"),
    "a tied head that is stored too": ("tiny_llama_tied", same_head, {}, "transformers"),
    "the head alone of two that are tied": ("tiny_llama_tied", head_alone, {}, "transformers"),
    "no prefix": ("tiny_llama", no_prefix, {}, "transformers"),
    "no prefix, tied": ("tiny_llama_tied", no_prefix, {}, "transformers"),
    "no prefix, and a head that differs": (
        "tiny_llama_tied",
        lambda tensors: no_prefix(other_head(tensors)),
        {},
        "transformers",
    ),
    "architectures names the base model": ("tiny_llama", as_is, {"architectures": ["LlamaModel"]}, "transformers"),
    "rotary frequencies": ("tiny_llama", frequencies, {}, "transformers"),
    "torch's name of a dtype": ("tiny_llama", as_is, {"dtype": "torch.float32"}, "source"),
    "an older spelling": ("tiny_hybrid", singular, {}, "source"),
    "a block that the config does not tell of": ("tiny_hybrid", untold_block, {}, "transformers"),
}
"""name -> (checkpoint, what is done to its tensors and its config, whether transformers reads what comes of it or its
answers are those of the checkpoint before)."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tensor]:
    """(folder, its logits as transformers gives them)."""
    source, change, config, reader = CASES[request.param]
    place: Path = request.getfixturevalue(source)
    folder = edited(place, tmp_path / "model", change, config)
    return folder, by_transformers(folder if reader == "transformers" else place)


def edited(source: Path, folder: Path, change: Callable[[Tensors], Tensors], config: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@torch.no_grad()
def by_transformers(folder: Path) -> Tensor:
    logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    return logits


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def whole(spec: ModelSpec) -> Plan:
    """The plan that keeps everything."""
    return Plan(spec.fingerprint, {}, tuple(range(len(spec.layers))))


def test_all_read_the_model_that_transformers_loads(case: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, expected = case
    spec, checkpoint = read_spec(folder), Checkpoint(folder)
    checkpoint.check(spec)
    model = load_model(folder, dtype=torch.float32, device=CPU)
    assert torch.equal(logits(model), expected)
    held = {one.data_ptr(): one.numel() for one in model.state_dict().values()}
    assert spec.parameters().total == sum(held.values())
    assert inspect(folder).spec.parameters().total == spec.parameters().total
    source = LayerwiseModel(folder, spec, dtype=torch.float32, device=CPU)
    source.load(lambda name: None)
    assert torch.equal(logits(source.model), expected)
    load_tokenizer(folder)
    made = prune(folder, whole(spec), tmp_path / "small")
    assert made.parameters == spec.parameters().total
    write_student(load_model(folder, dtype=torch.float32, device=CPU), folder, tmp_path / "trained", card="")
    for output in (tmp_path / "small", tmp_path / "trained"):
        assert torch.equal(by_transformers(output), expected)
        assert (
            read_spec(output).is_tied
            == spec.is_tied
            == json.loads((output / "config.json").read_text())["tie_word_embeddings"]
        )


def test_a_model_without_an_output_layer_is_counted_and_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    """Mistral-7B has 7,241,732,096 parameters, 32,000 x 4,096 of them in its output layer."""
    for name, more in (("LlamaModel", {}), ("LlamaForSequenceClassification", {"score.weight": torch.zeros(2, 48)})):
        folder = edited(
            tiny_llama,
            tmp_path / name,
            lambda tensors, more=more: {k: v for k, v in tensors.items() if k != "lm_head.weight"} | more,  # type: ignore[misc]
            {"architectures": [name]},
        )
        found = inspect(folder)
        head = load_file(tiny_llama / "model.safetensors")["lm_head.weight"].numel()
        assert found.spec.parameters().total == read_spec(tiny_llama).parameters().total - head
        assert "lm_head" not in found.spec.parameters().by_component
        assert list(found.extras.values()) == [96] * len(more)
        reads = (
            lambda folder=folder, found=found: prune(folder, whole(found.spec), tmp_path / "small"),
            lambda folder=folder: load_model(folder),
            lambda folder=folder, found=found: LayerwiseModel(folder, found.spec, dtype=torch.float32, device=CPU),
        )
        for read in reads:
            with pytest.raises(MinitronError, match=f"holds a {name}, which has no output layer"):
                read()
    assert not (tmp_path / "small").exists()


def test_embedding_models_are_counted_without_an_output_layer() -> None:
    config = {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    counts = [
        spec_of(config | {"architectures": [name]}).parameters().total
        for name in ("MistralModel", "MistralForCausalLM")
    ]
    assert counts == [7_110_660_096, 7_241_732_096]


def test_of_two_sets_of_weights_all_read_the_one_that_transformers_reads(tmp_path: Path) -> None:
    folder, newer = tiny_models.save_llama(tmp_path / "model"), tiny_models.save_llama(tmp_path / "newer", seed=1)
    AutoModelForCausalLM.from_pretrained(newer).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, folder)
    assert (folder / "model.safetensors.index.json").is_file() and (folder / "model.safetensors").is_file()
    expected = by_transformers(folder)
    assert torch.equal(logits(load_model(folder, dtype=torch.float32, device=CPU)), expected)
    spec = read_spec(folder)
    prune(folder, whole(spec), tmp_path / "small")
    assert torch.equal(by_transformers(tmp_path / "small"), expected)
    assert not list((tmp_path / "small").glob("*.index.json"))
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(Checkpoint(folder).tensor(name), tensor) for name, tensor in stored.items())
    (folder / "model.safetensors").unlink()
    assert not torch.equal(logits(load_model(folder, dtype=torch.float32, device=CPU)), expected)


def test_a_setting_that_fails_at_the_first_pass_is_told_when_the_model_is_loaded(
    tiny_hybrid: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_hybrid, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"time_step_min": 1e297}))
    with pytest.raises(MinitronError, match=r"transformers cannot run the model of .*; correct its config.json"):
        load_model(folder)
