"""Models that also see: the language model is cut, the tower is carried, and the whole loads and sees as before."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import kill_units, random_scores
from family_sizes import FAMILY_SIZES
from safetensors.torch import load_file, save_file
from tiny_models import save_family
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText
from transformers.initialization import no_init_weights

from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.rotation import unrotatable
from minitron.cut.scores import Scores
from minitron.cut.selection import STREAM
from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.workload import Workload
from minitron.model.checkpoint import Checkpoint
from minitron.model.configs import as_transformers_reads
from minitron.model.families import FAMILIES, WRAPPERS
from minitron.model.families.towers import TOWERS
from minitron.model.families.wrappers import ABSENT
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec, spec_of
from pipeline import inspect

CPU = torch.device("cpu")
CASES = [(model_type, number) for model_type in WRAPPERS for number in range(len(FAMILY_SIZES[model_type]))]


# One config of every type; the others among the slow tests.
FEW = [case if case[1] == 0 else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(params=FEW, ids=lambda case: f"{case[0]}-{case[1]}")
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model_type, number = request.param
    return save_family(tmp_path / "model", model_type, **FAMILY_SIZES[model_type][number])


def whole(spec: ModelSpec) -> Plan:
    return Plan(spec.fingerprint, {}, tuple(range(len(spec.layers))))


def seen(folder: Path) -> torch.Tensor:
    """The logits of a text with an image in it, of transformers' own class of the whole model."""
    found, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids, images = a_text_with_an_image(json.loads((folder / "config.json").read_text()))
    with torch.no_grad():
        logits: torch.Tensor = found.eval()(input_ids=ids, **images).logits
        blank = {name: value * 0 if value.is_floating_point() else value for name, value in images.items()}
        assert not torch.allclose(logits, found(input_ids=ids, **blank).logits, rtol=1e-3), "the image is not seen"
    return torch.cat([logits, heard(found)], dim=1)


def heard(model: Any) -> torch.Tensor:
    """The logits of a text with sound in it; none of a model that does not hear."""
    generator, sound = torch.Generator().manual_seed(1), getattr(model.config, "audio_config", None)
    if sound is None:
        return torch.zeros(1, 0, model.config.get_text_config().vocab_size)
    clip = torch.randn(1, 32, sound.num_mel_bins, generator=generator)
    text = torch.arange(3, 11)
    ids = torch.cat([text, torch.full((32 // sound.subsampling_factor,), model.config.audio_token_id), text])[None]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, input_features=clip).logits
        silent = model(input_ids=ids, input_features=clip * 0).logits
    assert not torch.allclose(logits, silent, rtol=1e-3), "the sound is not heard"
    return logits


def a_text_with_an_image(config: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """[1, T] ids and what the model's processor would make of an image."""
    generator, vision = torch.Generator().manual_seed(0), config["vision_config"]
    image, patch = vision.get("image_size", 56), vision["patch_size"]
    patches = (image // patch) ** 2
    if vision["model_type"] == "radio":
        pixels = torch.randn(patches, 3 * patch * patch, generator=generator)
        images, tokens = {"pixel_values": pixels, "image_grid_hw": torch.tensor([[4, 4]])}, patches // 4
    elif "depth" in vision:
        pixels = torch.randn(patches, 3 * 2 * patch * patch, generator=generator)
        images = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, image // patch, image // patch]])}
        tokens = patches // 4
    elif config["model_type"] == "gemma4":
        grid = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)
        pixels = torch.rand(1, 16, 3 * patch * patch, generator=generator)
        images, tokens = {"pixel_values": pixels, "image_position_ids": grid[None]}, 4
    else:
        images = {"pixel_values": torch.randn(1, 3, image, image, generator=generator)}
        tokens = {"gemma3": config.get("mm_tokens_per_image"), "mistral3": patches // 4, "llama4": patches // 4}.get(
            config["model_type"], patches
        )
        if vision["model_type"] == "pixtral":
            images["image_sizes"] = torch.tensor([[image, image]])
        if config["model_type"] == "llava_next":
            # One picture of the whole and four of its parts, and a column of new lines beside the parts.
            images = {"pixel_values": torch.randn(1, 5, 3, image, image, generator=generator)}
            images["image_sizes"] = torch.tensor([[2 * image, 2 * image]])
            tokens = 5 * patches + 4
    text = torch.arange(3, 20)
    ids = torch.cat([text[:8], torch.full((tokens,), 299), text[8:]])[None]
    if "depth" in vision:
        images["mm_token_type_ids"] = (ids == 299).int()
    return ids, images


def cuts(spec: ModelSpec) -> dict[str, int]:
    """A cut of everything that the tiny models have in common."""
    wanted = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20}
    wanted |= {"moe_intermediate_size": 16}
    return {key: size for key, size in wanted.items() if key in spec.named_sizes and spec.named_sizes[key] > size}


def test_a_cut_of_dead_units_sees_as_before_and_carries_the_tower(model: Path, tmp_path: Path) -> None:
    spec = read_spec(model)
    layers = tuple(range(len(spec.layers)))
    energy = kill_units(model, spec, make_plan(spec, cuts(spec), layers, random_scores(spec)))
    spec = read_spec(model)
    scores = Scores(random_scores(spec).importance, energy, spec.fingerprint, "0" * 64)
    plan = make_plan(spec, cuts(spec), layers, scores, rotate=False)
    plans = {"selected": plan}
    if unrotatable(spec) is None:
        channels = np.asarray(plan.keep[STREAM])
        vectors, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(channels), len(channels))))
        covariance = np.zeros((spec.sizes["hidden"], spec.sizes["hidden"]))
        covariance[np.ix_(channels, channels)] = vectors @ np.diag(np.arange(len(channels)) + 1.0) @ vectors.T
        turned = replace(scores, covariance={STREAM: covariance})
        plans["rotated"] = make_plan(spec, cuts(spec), layers, turned, rotate=True)
    before = seen(model)
    for name, found in plans.items():
        prune(model, found, tmp_path / name)
        assert float((seen(tmp_path / name) - before).norm() / before.norm()) < 1e-4, name
        carried = Checkpoint(model).extras(spec)
        one, other = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / name))
        assert carried and all(one[key].numpy().tobytes() == other[key].numpy().tobytes() for key in carried)
        assert found.parameters == Checkpoint(tmp_path / name).num_parameters


def test_the_language_model_alone_says_what_it_says_inside(model: Path) -> None:
    ids = torch.randint(3, 290, (2, 24), generator=torch.Generator().manual_seed(0))
    own = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found = load_model(model, dtype=torch.float32, device=CPU)(ids).logits
        torch.testing.assert_close(found, own(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_every_dialect_of_the_names_is_read_and_kept(model: Path, tmp_path: Path) -> None:
    stored = load_file(model / "model.safetensors")
    for place in PLACES.get(json.loads((model / "config.json").read_text())["model_type"], PLACES[""]):
        folder = tmp_path / place
        shutil.copytree(model, folder)
        renamed = {told(name, place): tensor for name, tensor in stored.items()}
        assert len(renamed) == len(stored)
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        spec = read_spec(folder)
        Checkpoint(folder).check(spec)
        prune(folder, whole(spec), tmp_path / f"{place}whole")
        found = load_file(tmp_path / f"{place}whole" / "model.safetensors")
        assert found.keys() == renamed.keys()
        assert all(found[name].numpy().tobytes() == renamed[name].numpy().tobytes() for name in found)
        small = make_plan(spec, cuts(spec), tuple(range(len(spec.layers))), random_scores(spec), rotate=False)
        prune(folder, small, tmp_path / f"{place}small")
        assert load_file(tmp_path / f"{place}small" / "model.safetensors").keys() == renamed.keys()
        load_model(tmp_path / f"{place}small", dtype=torch.float32, device=CPU)


PLACES = {
    "": ("model.language_model.", "language_model.model."),
    "nemotron_h_omni": ("language_model.backbone.", "language_model.model."),
}
"""type -> what the names of the language model's tensors begin with in released files and in transformers; the empty
type stands for the others."""

RELEASED_NAMES = {
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
    "sound_encoder.encoder.": "audio_tower.",
    "sound_projection.norm.": "embed_audio.layer_norm.",
    "sound_projection.linear1.": "embed_audio.linear_1.",
    "sound_projection.linear2.": "embed_audio.linear_2.",
}
"""What names of Nemotron 3 Nano Omni begin with in its released files -> in transformers (conversion_mapping.py)."""


def told(name: str, place: str) -> str:
    """A tensor's name as transformers holds it in memory (`model.language_model.`) or as older files do."""
    if name.startswith(("language_model.backbone.", *RELEASED_NAMES)):
        released = next((begin for begin in RELEASED_NAMES if name.startswith(begin)), "")
        if place == "language_model.backbone.":
            return name
        told_so = name.replace(released, RELEASED_NAMES[released], 1) if released else name
        return told_so.replace("language_model.backbone.", place)
    outer = "model." if place.startswith("model.") else ""
    text = re.sub(
        r"^(model\.language_model\.|language_model\.model\.|model\.(?=embed_tokens|layers|norm))", place, name
    )
    if text != name:
        return text
    if name.endswith("lm_head.weight"):
        return "lm_head.weight" if outer else "language_model.lm_head.weight"
    return outer + name.removeprefix("model.")


def test_the_language_model_may_be_all_that_is_there(model: Path, tmp_path: Path) -> None:
    """People take the language model out of a file and leave config.json as it is."""
    spec = read_spec(model)
    beside = Checkpoint(model).extras(spec)
    tensors = load_file(model / "model.safetensors")
    text = {name: tensor for name, tensor in tensors.items() if name not in beside and spec.builds(name)}
    assert len(text) < len(tensors) - len(beside)  # the projector goes too
    save_file(text, model / "model.safetensors", metadata={"format": "pt"})
    plan = make_plan(spec, cuts(spec), tuple(range(len(spec.layers))), random_scores(spec), rotate=False)
    prune(model, plan, tmp_path / "small")
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == text.keys()
    assert load_model(tmp_path / "small", dtype=torch.float32, device=CPU).config.hidden_size == 16
    assert inspect(model).to_json()["parameters"]["total"] == sum(tensor.numel() for tensor in text.values())


def test_the_new_config_keeps_its_nesting(model: Path) -> None:
    spec = read_spec(model)
    small = spec.resized(cuts(spec), (0, 2, 3))
    before, after = dict(spec.config), dict(small.config)
    assert after["text_config"]["hidden_size"] == 16
    changed = {key for key in before if before[key] != after[key]}
    assert before.keys() == after.keys() and changed <= {"text_config", "vision_config"}
    vision = {key for key, value in before["vision_config"].items() if after["vision_config"][key] != value}
    assert vision <= {"out_hidden_size", "hidden_size"}
    config = CONFIG_MAPPING[str(after["model_type"])].from_dict(as_transformers_reads(after))
    assert config.get_text_config().hidden_size == 16 and config.get_text_config().num_hidden_layers == 3


def test_a_tower_takes_memory_and_no_time(model: Path) -> None:
    spec = read_spec(model)
    parameters = spec.parameters()
    on_disk = Checkpoint(model)
    tower = sum(on_disk.headers[name].numel for name in on_disk.extras(spec))
    towers = [rule.component for rule in spec.family.rules["tower"]]
    assert "vision_tower" in towers and sum(parameters.by_component[one] for one in towers) == tower
    for weights, least in (("bf16", 2 * tower), ("fp8", 2 * tower)):
        lines = footprint(spec, Workload(16, 1, weights, "bf16", "fp32", "bf16"))
        text = replace(spec.family, rules={kind: own for kind, own in spec.family.rules.items() if kind != "tower"})
        without = footprint(ModelSpec(text, spec.config, spec.stored), Workload(16, 1, weights, "bf16", "fp32", "bf16"))
        assert lines.weights - without.weights == least
    assert parameters.active <= parameters.total - tower - parameters.by_component["projector"]


RELEASED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "released_wrappers.json").read_text()
)
"""Configs as they were released, and the parameters of the released files."""

GEMMA_3_4B = RELEASED["Gemma 3 4B"]["config"]


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    config, published = RELEASED[name]["config"], RELEASED[name]["parameters"]
    spec = spec_of(config)
    assert spec.parameters().total == published
    # What transformers builds of the config, an output layer that it ties counted once.
    (tmp_path / "config.json").write_text(json.dumps(config))
    built = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"), no_init_weights():
        theirs = AutoModelForImageTextToText.from_config(built).state_dict()
    assert sum(one.numel() for name, one in theirs.items() if not (spec.is_tied and "lm_head" in name)) == published
    key = "intermediate_size" if "intermediate_size" in spec.named_sizes else "moe_intermediate_size"
    small = spec.resized({key: 1024}, (0, 1, 2))
    assert len(small.layers) == 3 and small.parameters().total < published


def test_what_released_files_leave_out_and_hold_beside_is_carried(tmp_path: Path) -> None:
    """RADIO's files have no scales of layers, Parakeet's the filters that its processor has too (modeling files)."""
    model = save_family(tmp_path / "model", "nemotron_h_omni", **FAMILY_SIZES["nemotron_h_omni"][0])
    stored = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if "layer_scale" not in name}
    kept["sound_encoder.encoder.feature_extractor.fb"] = torch.ones(1, 16, 5)
    kept["language_model.backbone.embedding.weight"] = kept.pop("language_model.backbone.embeddings.weight")
    assert len(kept) == len(stored) - 3
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(model)
    prune(model, make_plan(spec, cuts(spec), (0, 1, 2, 3), random_scores(spec), rotate=False), tmp_path / "small")
    written = load_file(tmp_path / "small" / "model.safetensors")
    assert {name.replace("embeddings", "embedding") for name in written} == kept.keys()
    seen(tmp_path / "small")


def test_older_keys_count_where_the_newer_ones_do_not() -> None:
    sizes = json.loads(json.dumps(FAMILY_SIZES["nemotron_h_omni"][0])) | {"model_type": "nemotron_h_omni"}
    older = dict(sizes)
    for key, old in (
        ("text_config", "llm_config"),
        ("audio_config", "sound_config"),
        ("vision_hidden_size", "vit_hidden_size"),
    ):
        older[old] = older.pop(key)
    both = older | {key: sizes[key] for key in ("text_config", "audio_config", "vision_hidden_size")}
    both |= {"llm_config": sizes["text_config"] | {"hidden_size": 64}, "vit_hidden_size": 64}
    both["sound_config"] = sizes["audio_config"] | {"hidden_size": 64}
    for config in (sizes, older, both):
        theirs = CONFIG_MAPPING["nemotron_h_omni"].from_dict(config)
        assert (theirs.text_config.hidden_size, theirs.audio_config.hidden_size, theirs.vision_hidden_size) == (
            *(32, 12),
            16,
        )
        assert spec_of(config).parameters() == spec_of(sizes).parameters()


def test_what_absent_keys_mean_is_what_the_classes_say() -> None:
    for model_type, absent in ABSENT.items():
        theirs = CONFIG_MAPPING[model_type]()
        assert {key: getattr(theirs, key) for key in absent} == dict(absent), model_type
    for model_type, tower in TOWERS.items():
        theirs = CONFIG_MAPPING[model_type]()
        found = {key: getattr(theirs, key, ()) for key in tower.defaults}
        assert found == dict(tower.defaults), model_type


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"text_config": {"model_type": "t5"}},
            "inside this gemma3 model is of the type 't5', which Minitron does not support",
        ),
        ({"text_config": None}, "text_config says nothing of the language model inside"),
        ({"vision_config": {"model_type": "vit"}}, "vision_config is of the type 'vit'.*does not know how large it is"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        spec_of(GEMMA_3_4B | changed)


def test_a_type_inside_that_does_not_say_is_the_one_of_the_class() -> None:
    text = {key: value for key, value in GEMMA_3_4B["text_config"].items() if key != "model_type"}
    assert spec_of(GEMMA_3_4B | {"text_config": text}).text == spec_of(GEMMA_3_4B).text


@pytest.mark.parametrize(
    ("model_type", "top", "inside", "tied"),
    [
        ("gemma3", None, None, True),
        ("gemma3", False, True, False),
        ("mistral3", None, None, False),
        ("mistral3", True, False, True),
        ("llava", False, True, True),
        ("llava", None, None, False),
    ],
)
def test_which_of_two_ties_counts(model_type: str, top: bool | None, inside: bool | None, tied: bool) -> None:
    config = json.loads(json.dumps(FAMILY_SIZES[model_type][0])) | {"model_type": model_type}
    config.pop("tie_word_embeddings", None)
    config["text_config"].pop("tie_word_embeddings", None)
    config |= {} if top is None else {"tie_word_embeddings": top}
    config["text_config"] |= {} if inside is None else {"tie_word_embeddings": inside}
    spec = spec_of(config)
    assert spec.is_tied is tied and not spec.untied().is_tied


def test_every_language_model_inside_is_of_a_known_family() -> None:
    for row in WRAPPERS.values():
        assert row.families.get(row.text, row.text) in FAMILIES
