"""Cutting checkpoints: what stays is exact, what goes is not missed, what is written loads."""

import errno
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import CASES, CUTS, HYBRID_CUTS, add_mtp, kill_units, logits, random_scores
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import save_hybrid, save_llama

from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import load_plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.scores import Scores, load_scores
from minitron.cut.selection import pick
from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec


@pytest.mark.parametrize(("fixture", "case"), CASES)
def test_cutting_dead_units_changes_nothing_and_the_result_loads(
    fixture: str, case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(request.getfixturevalue(fixture), parent)
    spec = read_spec(parent)
    layers = tuple(range(len(spec.layers)))
    kept_layers = tuple(layer for layer in layers if layer not in (1, 2)) if case == "all" else layers
    energy = kill_units(parent, spec, make_plan(spec, CUTS[fixture][case], kept_layers, random_scores(spec)))
    spec = read_spec(parent)
    scores = Scores(random_scores(spec).importance, energy, spec.fingerprint, "0" * 64)
    plan = make_plan(spec, CUTS[fixture][case], kept_layers, scores)

    result = prune(parent, plan, tmp_path / "small")

    assert (logits(tmp_path / "small") - logits(parent)).abs().max() < 1e-5
    # Independent of ours: what the safetensors headers say, and what transformers builds.
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        headers = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert result.parameters == sum(int(np.prod(shape)) for shape in headers)
    assert result.weight_bytes == 4 * result.parameters
    model = load_model(tmp_path / "small", dtype=torch.float32)
    built = sum(p.numel() for p in model.parameters()) + sum(
        buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")
    )
    assert result.parameters == built == plan.parameters


@pytest.mark.parametrize("fixture", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"])
def test_keeping_all_writes_the_same_tensors(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    parent = request.getfixturevalue(fixture)
    spec = read_spec(parent)
    prune(parent, make_plan(spec, {}, tuple(range(len(spec.layers)))), tmp_path / "same")
    old, new = load_file(parent / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert old.keys() == new.keys()
    for name in old:
        assert old[name].dtype == new[name].dtype
        assert old[name].numpy().tobytes() == new[name].numpy().tobytes()
    assert json.loads((parent / "config.json").read_text()) == json.loads((tmp_path / "same/config.json").read_text())


def test_kept_entries_are_copied_bit_for_bit(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    plan = make_plan(spec, HYBRID_CUTS["all"], (0, 1, 2, 4, 6), random_scores(spec))
    prune(tiny_hybrid, plan, tmp_path / "small")
    old, new = Checkpoint(tiny_hybrid), Checkpoint(tmp_path / "small")
    expert = pick(plan.keep, "expert", 6, None)
    assert expert is not None
    for new_index, old_index in enumerate(expert):
        rows = pick(plan.keep, "expert_ffn", 6, int(old_index))
        columns = plan.keep["hidden", None]
        parent = old.tensor(f"backbone.layers.6.mixer.experts.{old_index}.up_proj.weight").numpy()
        child = new.tensor(f"backbone.layers.4.mixer.experts.{new_index}.up_proj.weight").numpy()
        assert (child == parent[np.ix_(rows, columns)]).all()


def test_shards_in_and_shards_out_hold_the_same(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    plan = make_plan(spec, HYBRID_CUTS["all"], (0, 1, 3, 4, 6), random_scores(spec))
    whole = prune(tiny_hybrid, plan, tmp_path / "whole")
    same = make_plan(spec, {}, tuple(range(len(spec.layers))))
    prune(tiny_hybrid, same, tmp_path / "sharded", shard_bytes=30_000)
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == Checkpoint(tiny_hybrid).weight_bytes
    for file in files[:-1]:
        assert (tmp_path / "sharded" / file).stat().st_size < 40_000
    again = prune(tmp_path / "sharded", plan, tmp_path / "small", shard_bytes=20_000)
    assert again == whole
    assert torch.equal(logits(tmp_path / "small"), logits(tmp_path / "whole"))


def test_every_companion_file_comes_along(tiny_hybrid: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    (parent / "chat_template.jinja").write_text("{{ messages }}")
    (parent / "pytorch_model.bin").write_bytes(b"old weights")
    spec = read_spec(parent)
    prune(parent, make_plan(spec, HYBRID_CUTS["ffn"], tuple(range(8)), random_scores(spec)), tmp_path / "small")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"} <= names
    assert "pytorch_model.bin" not in names
    card = (tmp_path / "small/README.md").read_text()
    assert "| intermediate_size | 56 | 40 |" in card
    record = json.loads((tmp_path / "small/minitron.json").read_text())
    assert record["promised"]["weight_bytes"] == Checkpoint(tmp_path / "small").weight_bytes


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ({"hybrid_override_pattern": "MEM*-ME*"}, {"hybrid_override_pattern": "MM*E"}),
        (
            {"layers_block_type": ["mamba", "moe", "mamba", "attention", "mlp", "mamba", "moe", "attention"]},
            {"layers_block_type": ["mamba", "mamba", "attention", "moe"]},
        ),
        (
            {"hybrid_override_pattern": "MEM*-ME*", "num_hidden_layers": 8},
            {"hybrid_override_pattern": "MM*E", "num_hidden_layers": 4},
        ),
    ],
)
def test_the_config_stays_in_its_dialect(
    tiny_hybrid: Path, tmp_path: Path, dialect: dict[str, Any], expected: dict[str, Any]
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    config = json.loads((parent / "config.json").read_text())
    keys = ("layers_block_type", "hybrid_override_pattern", "num_hidden_layers")
    config = {key: value for key, value in config.items() if key not in keys}
    config = config | dialect | {"attention_head_dim": config.pop("head_dim")}
    (parent / "config.json").write_text(json.dumps(config))
    spec = read_spec(parent)
    plan = make_plan(spec, {"hidden_size": 24}, (0, 2, 3, 6), random_scores(spec))
    prune(parent, plan, tmp_path / "small")
    written = json.loads((tmp_path / "small/config.json").read_text())
    assert {key: written[key] for key in keys if key in written} == expected
    assert written == config | expected | {"hidden_size": 24}


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("backbone.embeddings.weight", "backbone.embeddings.weight"),
        # An older name, which transformers does not read.
        ("backbone.embedding.weight", "backbone.embeddings.weight"),
        ("model.embeddings.weight", "model.embeddings.weight"),
    ],
)
def test_every_name_of_the_embedding_is_understood(
    tiny_hybrid: Path, tmp_path: Path, source: str, written: str
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    tensors = load_file(parent / "model.safetensors")
    tensors[source] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(parent)
    prune(parent, make_plan(spec, {"hidden_size": 24}, tuple(range(8)), random_scores(spec)), tmp_path / "small")
    assert Checkpoint(tmp_path / "small").headers[written].shape == (300, 24)


def test_the_prediction_block_is_cut_along(tiny_hybrid: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    add_mtp(parent, {})
    spec = read_spec(parent)
    assert spec.parameters().mtp > 0
    scores = random_scores(spec)
    covered = {key: value for key, value in scores.importance.items() if key[1] is None or key[1] < 8}
    scores = Scores(covered, {}, scores.model, scores.data)
    plan = make_plan(
        spec, HYBRID_CUTS["all"], (0, 1, 3, 4, 6), scores, fallback=weight_magnitude(Checkpoint(parent), spec)
    )
    result = prune(parent, plan, tmp_path / "small")
    small = read_spec(tmp_path / "small")
    assert result.parameters == small.parameters().total + small.parameters().mtp
    headers = Checkpoint(tmp_path / "small").headers
    assert headers["mtp.layers.0.eh_proj.weight"].shape == (24, 48)
    assert headers["mtp.layers.1.mixer.experts.3.up_proj.weight"].shape == (16, 24)
    assert "mtp.layers.1.mixer.experts.4.up_proj.weight" not in headers
    logits(tmp_path / "small")


def test_weight_magnitude_ranks_as_the_norm_of_what_would_go(tiny_hybrid: Path) -> None:
    spec, checkpoint = read_spec(tiny_hybrid), Checkpoint(tiny_hybrid)
    magnitude = weight_magnitude(checkpoint, spec)
    up = checkpoint.tensor("backbone.layers.4.mixer.up_proj.weight").double()
    down = checkpoint.tensor("backbone.layers.4.mixer.down_proj.weight").double()
    expected = (up.square().sum(1) + down.square().sum(0)).sqrt().numpy()
    assert np.allclose(magnitude("ffn", 4), expected, rtol=1e-12)
    experts = magnitude("expert_ffn", 1)
    up = checkpoint.tensor("backbone.layers.1.mixer.experts.2.up_proj.weight").double()
    down = checkpoint.tensor("backbone.layers.1.mixer.experts.2.down_proj.weight").double()
    assert experts.shape == (6, 24)
    assert np.allclose(experts[2], (up.square().sum(1) + down.square().sum(0)).sqrt().numpy(), rtol=1e-12)


def test_plans_and_scores_survive_the_disk(tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    scores = random_scores(spec)
    scores.save(tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors")
    assert again.fingerprint == scores.fingerprint
    assert again.importance.keys() == scores.importance.keys()
    plan = make_plan(spec, HYBRID_CUTS["all"], (0, 1, 3, 4, 6), again)
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded.to_json() == plan.to_json()
    assert all((loaded.keep[key] == kept).all() for key, kept in plan.keep.items())
    assert (tmp_path / "plan.json").read_text().count("\n") < 400


def test_the_chosen_are_the_best_of_each_group() -> None:
    """Brute force over one layer: no choice with as many heads in each group has a larger sum."""
    from itertools import combinations

    from minitron.cut.selection import top

    worth = np.random.default_rng(3).random(8)
    chosen = top(worth, 4, 2, "heads")
    best = max(
        (
            left + tuple(4 + i for i in right)
            for left in combinations(range(4), 2)
            for right in combinations(range(4), 2)
        ),
        key=lambda heads: worth[list(heads)].sum(),
    )
    assert chosen.tolist() == list(best)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"hidden_size": 64}, "more than the model's 32"),
        ({"num_attention_heads": 3}, "equal groups"),
        ({"n_routed_experts": 1}, "more than the 1 experts"),
        ({"vocab_size": 100}, "cannot be cut"),
        ({"no_such_size": 3}, "is no size of this model"),
        ({"hidden_size": 0}, "at least 1"),
    ],
)
def test_sizes_out_of_reach_are_refused(tiny_hybrid: Path, sizes: dict[str, int], why: str) -> None:
    spec = read_spec(tiny_hybrid)
    with pytest.raises(MinitronError, match=why):
        make_plan(spec, sizes, tuple(range(8)), random_scores(spec))


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])


def add_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"backbone.layers.0.mixer.adapter.weight": torch.ones(2)}, folder / "model.safetensors")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("backbone.layers.0.mixer.D")
    save_file(tensors, folder / "model.safetensors")


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.norm_f.weight"] = torch.ones(31)
    save_file(tensors, folder / "model.safetensors")


def escape(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"backbone.norm_f.weight": "../parent/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def rename_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt5"}))


def quantise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "truncated"),
        (cut_header, "truncated"),
        (add_tensor, "adapter.weight"),
        (drop_tensor, r"1 tensors are missing, the first model.layers.0.mixer.D"),
        (wrong_shape, r"norm_f.weight has the shape \[31\], but config.json gives \[32\]"),
        (escape, "outside the folder"),
        (remove, "holds neither"),
        (rename_type, "does not support"),
        (quantise, "quantised"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_nothing_written(
    tiny_hybrid: Path, tmp_path: Path, damage: Any, why: str
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    damage(parent)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MinitronError, match=why):
        spec = read_spec(parent)
        prune(parent, make_plan(spec, {}, tuple(range(8))), tmp_path / "small")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tiny_hybrid: Path, tmp_path: Path) -> None:
    # As on a full disk, the last write before the limit is a short one, and the next fails.
    plan = make_plan(read_spec(tiny_hybrid), {}, tuple(range(8)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_001, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*model-0000.-of-000.*\.safetensors") as raised:
            prune(tiny_hybrid, plan, tmp_path / "small", shard_bytes=30_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_another_models_plan_and_scores_are_refused(
    tiny_hybrid: Path, tiny_hybrid_latent: Path, tmp_path: Path
) -> None:
    spec, other = read_spec(tiny_hybrid), read_spec(tiny_hybrid_latent)
    with pytest.raises(MinitronError, match="scores were made from a model with another config"):
        make_plan(other, {"hidden_size": 24}, tuple(range(8)), random_scores(spec))
    plan = make_plan(spec, {"hidden_size": 24}, tuple(range(8)), random_scores(spec))
    with pytest.raises(MinitronError, match="plan was made for a model with another config"):
        prune(tiny_hybrid_latent, plan, tmp_path / "small")
    with pytest.raises(MinitronError, match="no indices"):
        prune(tiny_hybrid, make_plan(spec, {"hidden_size": 24}, tuple(range(8))), tmp_path / "small")


def test_a_width_left_to_a_default_is_written_out(tmp_path: Path) -> None:
    parent = save_llama(tmp_path / "parent", head_dim=8)
    config = json.loads((parent / "config.json").read_text())
    config.pop("head_dim")
    (parent / "config.json").write_text(json.dumps(config))
    spec = read_spec(parent)
    assert spec.sizes["head_dim"] == 8
    plan = make_plan(spec, {"hidden_size": 24}, (0, 1, 2, 3), random_scores(spec))
    prune(parent, plan, tmp_path / "small")
    assert json.loads((tmp_path / "small/config.json").read_text())["head_dim"] == 8
    logits(tmp_path / "small")


def test_groups_of_experts_stay_of_one_size(tmp_path: Path) -> None:
    parent = save_hybrid(tmp_path / "parent", n_group=2, topk_group=1)
    spec = read_spec(parent)
    plan = make_plan(spec, {"n_routed_experts": 4}, tuple(range(8)), random_scores(spec))
    for layer in (1, 6):
        kept = plan.keep["expert", layer]
        assert (kept < 3).sum() == 2
    with pytest.raises(MinitronError, match="does not divide into the 2 equal groups"):
        make_plan(spec, {"n_routed_experts": 5}, tuple(range(8)), random_scores(spec))


def test_a_config_that_transformers_refuses_is_told_before_anything_is_cut(tiny_hybrid: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_hybrid, parent)
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | {"mamba_ssm_cache_dtype": None}))
    spec = read_spec(parent)
    plan = make_plan(spec, HYBRID_CUTS["ffn"], tuple(range(len(spec.layers))), random_scores(spec))

    def cutting(what: str, total: int | None, unit: str) -> Any:
        raise AssertionError(f"{what} began")

    with pytest.raises(MinitronError, match="mamba_ssm_cache_dtype"):
        prune(parent, plan, tmp_path / "small", progress=cutting)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]
