"""What every family must do before it is one: a tiny model of each type, made by transformers, through all that
Minitron does with a checkpoint.  What is compared with comes from transformers, never from the family's own table."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import kill_units, random_scores
from family_sizes import FAMILY_SIZES
from safetensors.torch import load_file
from tiny_models import save_family
from transformers import PreTrainedModel

from cli.app import run
from distill.run.router_load import routers_of
from distill.teacher.fp8 import fp8_weights
from distill.teacher.kept import Kept
from importance.score.calibrate import score_layerwise, score_model
from importance.score.options import ScoringOptions
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.cut.rotation import unrotatable
from minitron.cut.scores import Scores
from minitron.cut.selection import STREAM
from minitron.errors import MinitronError
from minitron.measure.quality import measure_quality
from minitron.memory.caches import kept
from minitron.memory.workload import Workload
from minitron.model.axes import ACTIVE, HIDDEN
from minitron.model.checkpoint import Checkpoint
from minitron.model.families import FAMILIES, WRAPPERS
from minitron.model.layerwise import LayerwiseModel
from minitron.model.loading import load_model, once
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.tensor_map import held

CASES = [(model_type, number) for model_type, sizes in FAMILY_SIZES.items() for number in range(len(sizes))]
CPU = torch.device("cpu")
KEPT = {"keys": "kv", "values": "kv", "indexer_keys": "kv", "conv_states": "conv", "recurrent_states": "state"}
KEPT["linear_cache"] = "state"
"""What a layer of transformers' cache, or the cache beside its layers, holds -> as what it counts."""

UNROTATABLE = {
    **dict.fromkeys(("nemotron", "cohere", "cohere2", "phimoe"), "a LayerNorm subtracts the mean over channels"),
    **dict.fromkeys(("olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "lfm3"), "norms multiply what is written"),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text", "gemma3", "gemma4"), "norms multiply what is written"),
    **dict.fromkeys(("exaone4", "glm4", "minimax", "afmoe"), "norms multiply what is written"),
}
"""family -> why its stream is in the basis of its channels for good."""
WITH_NORMS_BEHIND = {"lfm3": "use_sandwich_norm"}
"""family of these -> the config key that says whether it has such norms."""

UNCUTTABLE = {"zamba2": "layers share blocks"}
"""family -> why it is planned for and inspected, and nothing of it can be cut (tests/test_uncuttable.py)."""


def name_of(case: tuple[str, int]) -> str:
    return f"{case[0]}-{case[1]}"


def on(cases: Sequence[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("checkpoint", cases, ids=name_of, indirect=True, scope="module")


CUTTABLE = [case for case in CASES if case[0] not in UNCUTTABLE]
SLOW = pytest.mark.slow
cuttable, one_first = on(CUTTABLE), on([one if one[1] == 0 else pytest.param(one, marks=SLOW) for one in CUTTABLE])

KINDS = {  # one type of every kind of layer and of stream
    *("llama", "phi3", "cohere", "gemma2", "gemma4_text"),  # dense: plain, stacked, LayerNorm, norms behind, shared KV
    *("qwen3_moe", "gpt_oss", "deepseek_v3", "flex_olmo"),  # experts: separate, stacked with biases, latent attention
    *("nemotron_h", "qwen3_next", "lfm2", "kimi_linear"),  # hybrids: Mamba-2, gated deltas, convolutions, decays
    *("mamba", "falcon_h1", "jamba"),  # a state alone, beside attention, and between its layers
    *("gemma3", "nemotron_h_omni"),  # inside a model that sees or hears
}
WHOLE = {"llama", "gemma4_text", "gpt_oss", "deepseek_v3", "nemotron_h", "qwen3_next", "falcon_h1", "gemma3"}
"""Those of KINDS that are trained each time: what a whole run adds to the tests before it follows from the type."""


def fast(types: set[str]) -> pytest.MarkDecorator:
    return on([one if one[0] in types else pytest.param(one, marks=SLOW) for one in CUTTABLE if one[1] == 0])


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, number = request.param
    return save_family(tmp_path_factory.mktemp("family") / model_type, model_type, **FAMILY_SIZES[model_type][number])


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return load_model(checkpoint, dtype=torch.float32, device=CPU)


def free_axes(spec: ModelSpec) -> Iterator[str]:
    """The axes of which a plan may choose indices, one for each config key."""
    for axes in spec.keys.values():
        # How many experts a token is sent to has no indices: tests/search/test_active_experts.py.
        if ACTIVE not in axes and not any(axis in spec.family.fixed for axis in axes):
            yield axes[0]


def cut_of(spec: ModelSpec, axis: str) -> dict[str, int]:
    """config key -> size of a cut of an axis by a quarter or more, with what goes along.

    Multiples of four first: torch's grouped matmul wants rows of 16 bytes."""
    for size in sorted(range(1, spec.sizes[axis] * 3 // 4 + 1), key=lambda size: (size % 4 > 0, -size)):
        along = {axis} | {member for member, group in spec.family.grouped.items() if group == axis} & set(spec.sizes)
        # Sizes that must make the same product shrink together, and groups of one with what is in them.
        along |= {other for member in along for _, other in linked(spec, member)}
        along |= {group for one, group in spec.family.grouped.items() if one in along and is_one_each(spec, group, one)}
        sizes = {spec.key(one): spec.sizes[one] * size // spec.sizes[axis] for one in along}
        try:
            make_plan(spec, sizes, tuple(range(len(spec.layers))), random_scores(spec))
        except MinitronError:
            continue
        return sizes
    raise AssertionError(f"{axis} cannot be cut to any size")


def is_one_each(spec: ModelSpec, group: str, member: str) -> bool:
    """Whether each index of a group holds one index: a KV head of one query head."""
    return spec.sizes.get(group) == spec.sizes.get(member)


def linked(spec: ModelSpec, axis: str) -> list[tuple[str, str]]:
    """(the axis, one on the other side of an equation that it stands in)."""
    found = []
    for pair in spec.equal:
        sides = [[word for word in re.findall(r"\w+", side) if word in spec.sizes] for side in pair]
        for own, others in (sides, sides[::-1]):
            if axis in own:
                found.append((axis, others[0]))
    return found


def cuts_of(spec: ModelSpec) -> list[dict[str, int]]:
    """config key -> size: all axes together, in as few cuts as what must be equal leaves room for."""
    found: list[dict[str, int]] = []
    for axis in reversed([*free_axes(spec)]):
        sizes = cut_of(spec, axis)
        place = next((place for place, others in enumerate(found) if is_reached(spec, others | sizes)), None)
        if place is None:
            found.append(sizes)
        else:
            found[place] |= sizes
    return found


def is_reached(spec: ModelSpec, sizes: dict[str, int]) -> bool:
    try:
        spec.resized(sizes)
    except MinitronError:
        return False
    return True


def rotated_scores(spec: ModelSpec, scores: Scores, kept_channels: np.ndarray) -> Scores:
    """The scores with a covariance of the stream that lives on some channels, in directions that mix them."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((len(kept_channels), len(kept_channels))))
    covariance = np.zeros((spec.sizes[HIDDEN], spec.sizes[HIDDEN]))
    covariance[np.ix_(kept_channels, kept_channels)] = vectors @ np.diag(rng.random(len(vectors)) + 0.5) @ vectors.T
    return replace(scores, covariance={STREAM: covariance})


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))).logits


def require_lossless(checkpoint: Path, sizes: dict[str, int], folder: Path, *, shallower: bool = False) -> None:
    """A cut of units that contribute nothing changes nothing, in a file and in memory, and is what was promised; where
    the stream can be rotated, rotated too."""
    parent, said = folder / "parent", str(sizes)
    shutil.copytree(checkpoint, parent)
    spec = read_spec(parent)
    layers = tuple(layer for layer in range(len(spec.layers)) if not shallower or layer != 1)
    energy = kill_units(parent, spec, make_plan(spec, sizes, layers, random_scores(spec)))
    spec = read_spec(parent)
    scores = Scores(random_scores(spec).importance, energy, spec.fingerprint, "0" * 64)
    plan = make_plan(spec, sizes, layers, scores, rotate=False)
    result = prune(parent, plan, folder / "small")
    # load_model refuses what is missing, unexpected or of another shape.
    before, after = (load_model(one, dtype=torch.float32, device=CPU) for one in (parent, folder / "small"))
    wanted, found = logits_of(before), logits_of(after)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4, said
    assert result.parameters == plan.parameters == Checkpoint(folder / "small").num_parameters
    assert after.num_parameters() <= result.parameters
    # What a search measures in memory is what is written.
    torch.testing.assert_close(logits_of(cut_model(before, spec, plan)), found, msg=said)
    if STREAM in plan.keep and not is_unrotatable(spec):
        turned = rotated_scores(spec, scores, np.asarray(plan.keep[STREAM]))
        rotated = make_plan(spec, sizes, layers, turned, rotate=True)
        assert rotated.rotates
        prune(parent, rotated, folder / "rotated")
        found = logits_of(load_model(folder / "rotated", dtype=torch.float32, device=CPU))
        assert float((found - wanted).norm() / wanted.norm()) < 1e-4, f"{said}, rotated"


def is_unrotatable(spec: ModelSpec) -> bool:
    said = WITH_NORMS_BEHIND.get(spec.family.name)
    return spec.family.name in UNROTATABLE and (said is None or bool(spec.config[said]))


def test_every_family_has_tiny_models() -> None:
    assert set(FAMILY_SIZES) == {name for name, family in FAMILIES.items() if not family.blocks} | set(WRAPPERS)


def test_every_tensor_is_named_and_counted_and_has_its_place_in_memory(
    checkpoint: Path, model: PreTrainedModel
) -> None:
    spec, on_disk = read_spec(checkpoint), Checkpoint(checkpoint)
    on_disk.check(spec)
    assert spec.parameters().total == on_disk.num_parameters
    state = once(model.state_dict(keep_vars=True))
    assert {one.name: one.shape for one in held(spec)} == {name: tuple(value.shape) for name, value in state.items()}
    # What is in memory is what is on disk, part by part.
    tensors = load_file(checkpoint / "model.safetensors")
    names = {rule.pattern.format(index): name for name, rule, index in on_disk.named_tensors(spec)}
    for one in held(spec):
        for expected, tensor in one.split(state[one.name]):
            assert torch.equal(tensor, tensors[names[expected.name]]), expected.name


def test_everything_kept_is_the_same_to_the_byte(checkpoint: Path, tmp_path: Path) -> None:
    spec = read_spec(checkpoint)
    prune(checkpoint, Plan(spec.fingerprint, {}, tuple(range(len(spec.layers)))), tmp_path / "whole")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "whole"))
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    assert json.loads((checkpoint / "config.json").read_text()) == json.loads(
        (tmp_path / "whole/config.json").read_text()
    )


@one_first
def test_cuts_of_dead_units_lose_nothing_and_load(checkpoint: Path, tmp_path: Path) -> None:
    spec = read_spec(checkpoint)
    for number, sizes in enumerate(cuts_of(spec)):
        shallower = number == 0 and len(spec.layers) > 3
        require_lossless(checkpoint, sizes, tmp_path / str(number), shallower=shallower)


@cuttable
def test_every_axis_is_cut_by_one_of_these(checkpoint: Path) -> None:
    spec, cuts = read_spec(checkpoint), cuts_of(read_spec(checkpoint))
    for axis in free_axes(spec):
        assert any(sizes.get(spec.key(axis), spec.sizes[axis]) < spec.sizes[axis] for sizes in cuts), axis


@SLOW
@cuttable
def test_a_cut_of_each_axis_alone_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    spec = read_spec(checkpoint)
    for axis in free_axes(spec):
        require_lossless(checkpoint, cut_of(spec, axis), tmp_path / axis)


@cuttable
def test_a_stream_that_cannot_be_rotated_is_refused_by_name(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    assert (unrotatable(spec) is not None) == is_unrotatable(spec)
    if not is_unrotatable(spec):
        return  # Its rotated cut is tried above.
    sizes = cut_of(spec, HIDDEN)
    scores = rotated_scores(spec, random_scores(spec), np.arange(spec.sizes[HIDDEN]))
    with pytest.raises(MinitronError, match="cannot be rotated"):
        make_plan(spec, sizes, tuple(range(len(spec.layers))), scores, rotate=True)
    # Where nobody says, channels are selected.
    assert not make_plan(spec, sizes, tuple(range(len(spec.layers))), scores).rotates


def test_what_layers_keep_is_what_transformers_keeps(checkpoint: Path, model: PreTrainedModel) -> None:
    """transformers keeps one column more of a convolution than a step needs, and one token fewer of a window."""
    spec, tokens = read_spec(checkpoint), 20
    with torch.no_grad():
        made = model(torch.arange(tokens)[None] + 3, use_cache=True)
    # Models without attention call it otherwise.
    cache = made.past_key_values if "past_key_values" in made else made.cache_params
    found = {"kv": 0, "conv": 0, "state": 0}
    for holder, (name, kind) in product([*cache.layers, cache], KEPT.items()):
        found[kind] += sum(part.numel() * part.element_size() for part in parts(getattr(holder, name, None)))
    workload = Workload(tokens, 1, "fp32", "fp32", "fp32", "fp32")
    keep = kept(spec, workload, spec.sizes, spec.kind_counts())
    assert found["kv"] == sum(
        one.attention * one.token * (one.tokens - 1 if one.tokens == one.window else one.tokens) for one in keep.caches
    )
    assert found["conv"] == sum(
        one.layers * one.conv // one.columns * (one.columns + 1) for one in keep.caches if one.conv
    )
    assert found["state"] == keep.state_bytes


def parts(held_by_layer: Any) -> list[torch.Tensor]:
    """The tensors of a cache entry, which is one, none or several."""
    if isinstance(held_by_layer, dict):
        held_by_layer = list(held_by_layer.values())
    if not isinstance(held_by_layer, list | tuple):
        held_by_layer = [held_by_layer]
    return [one for one in held_by_layer if isinstance(one, torch.Tensor)]


def test_logits_are_the_output_layer_times_the_last_hidden_state(model: PreTrainedModel) -> None:
    """Scaled and capped as the family's table says: distillation, KL and perplexity rest on it."""
    blocks = np.random.default_rng(0).integers(3, 300, (2, 24))
    with torch.no_grad():
        found = model(torch.from_numpy(blocks)).logits[:, :-1].double().log_softmax(-1)
    following = torch.from_numpy(blocks[:, 1:, None])
    perplexity = float(found.gather(-1, following).mean().neg().exp())
    assert measure_quality(model, blocks).perplexity == pytest.approx(perplexity, rel=1e-5)


def test_an_fp8_teacher_keeps_attention_and_routers(checkpoint: Path, model: PreTrainedModel) -> None:
    spec = read_spec(checkpoint)
    changed = {f"{name}.{weight}" for name, _, weight in fp8_weights(model, Kept(attention=True), spec)}
    nothing = Kept(attention=False, before_attention=False)
    everything = {f"{name}.{weight}" for name, _, weight in fp8_weights(model, nothing, spec)}
    # A mixer with a convolution or decays is linear attention, whatever its place is called.
    attention = {
        name
        for name, module in model.named_modules()
        if name.endswith(".self_attn") and not any(re.search("conv|decay", part) for part in module.state_dict())
    }
    assert changed and not any(name.startswith(tuple(f"{one}." for one in attention)) for name in changed)
    assert not any(".gate." in name or "router" in name for name in changed)
    # Every matrix of a layer but those of routers, norms and convolutions, what a scan's states fade by, and the linear
    # that the first Mamba's mixers never call: they multiply with its weight themselves.
    large = {
        name
        for name, parameter in model.named_parameters()
        if ".layers." in name
        and parameter.ndim in (2, 3)
        and not re.search(r"\.gate\.|router|norm|A_log|dt_proj", name)
    }
    large -= {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Conv1d)}
    assert everything == {name for name in large if not name.endswith("_bias")}


def test_routers_are_found_by_the_table(checkpoint: Path, model: PreTrainedModel) -> None:
    found = {id(parameter) for module in routers_of(model, read_spec(checkpoint)) for parameter in module.parameters()}
    routers = [module for name, module in model.named_modules() if re.search(r"\.(gate|router)$", name)]
    assert found == {id(parameter) for module in routers for parameter in module.parameters()}


@fast(KINDS)
def test_scores_layer_by_layer_are_those_in_memory(checkpoint: Path, model: PreTrainedModel) -> None:
    spec, blocks = read_spec(checkpoint), np.random.default_rng(0).integers(3, 300, (4, 32))
    options = ScoringOptions(dtype="fp32", layers="fast")
    whole = score_model(model, spec, blocks, options)
    layers = score_layerwise(LayerwiseModel(checkpoint, spec, dtype=torch.float32, device=CPU), blocks, options)
    assert whole.importance.keys() == layers.importance.keys()
    for key, values in whole.importance.items():
        np.testing.assert_allclose(layers.importance[key], values, rtol=1e-4, atol=1e-7, err_msg=str(key))
    for name, energy in whole.energy.items():
        np.testing.assert_allclose(layers.energy[name], energy, rtol=1e-4, err_msg=name)
    # Every axis that is cut by default has scores or a basis, or takes those of what is grouped in it.
    scored = {axis for axis, _ in (*whole.importance, *whole.bases)}
    for axis in free_axes(spec):
        row = spec.axis(axis)
        members = {member for member, group in spec.family.grouped.items() if group == axis}
        assert row.step.most == 0 or scored & {axis, row.joint, *members}, axis


@fast(WHOLE)
def test_two_steps_of_distillation(checkpoint: Path, short_text: Path, tmp_path: Path) -> None:
    spec, pruned, distilled = read_spec(checkpoint), tmp_path / "pruned", tmp_path / "distilled"
    prune(checkpoint, make_plan(spec, cuts_of(spec)[0], tuple(range(len(spec.layers))), random_scores(spec)), pruned)
    steps = ["--steps=2", "--batch-tokens=64", "--sequence-length=32", "--dtype=fp32", "--validation-sequences=2"]
    steps += ["--teacher", str(checkpoint), "--data", str(short_text), "-o", str(distilled)]
    assert run(["distill", str(pruned), *steps]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, distilled))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    load_model(distilled, dtype=torch.float32, device=CPU)


@fast(WHOLE)
def test_the_chain_compresses_to_a_budget(checkpoint: Path, short_text: Path, tmp_path: Path) -> None:
    spec, whole = read_spec(checkpoint), Checkpoint(checkpoint)
    budget = round(0.8 * whole.weight_bytes + 0.2 * sum(whole.headers[name].num_bytes for name in whole.extras(spec)))
    asked = [f"--budget={budget}", "--context=16", "--weights=fp32", "--dtype=fp32", "--no-speed", "--combinations=4"]
    asked += ["--sequence-length=32", "--samples=2", "--layer-samples=1", "--evaluate=2", "--trial-samples=2"]
    asked += ["--finalists=1", "--tokens=64", "--batch-tokens=64", "--distill-sequence-length=32"]
    folder = tmp_path / "run"
    assert run(["compress", str(checkpoint), "--data", str(short_text), *asked, "-o", str(folder)]) == 0
    report = json.loads((folder / "report" / "report.json").read_text())
    chosen = report["candidates"][report["chosen_index"]]
    assert read_spec(folder / "distilled").parameters().total == chosen["parameters"] < spec.parameters().total
    assert Checkpoint(folder / "distilled").weight_bytes < budget
    load_model(folder / "distilled", dtype=torch.float32, device=CPU)
