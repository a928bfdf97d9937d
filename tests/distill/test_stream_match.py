"""The residual stream of a pruned student beside its parent's: where it lies, what is lost of it, what is learnt."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import tiny_models
import torch
from cuts import scored
from distilling import CPU, RECIPE, Killed, kill, require_equal, stop_after
from stream_cuts import plan_of, told_of
from torch import Tensor

from cli.app import run
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.objective import Objective, Pass
from distill.run.result import DistillResult
from distill.run.stream_match import StreamMatch
from distill.run.train import distill
from distill.teacher.streams import FIRST, Streams, mean_squares, variances
from minitron.cut.basis import Basis
from minitron.cut.prune import prune
from minitron.cut.stream_map import StreamMap, read_stream_maps
from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.measure.text import token_blocks
from minitron.model.headers import read_headers
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

FIXTURES = ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"]


def streams(folder: Path, ids: Tensor) -> list[np.ndarray]:
    """The stream after every layer but the last, as transformers tells it; in place of the last is what its final norm
    makes of it."""
    model = load_model(folder, dtype=torch.float32, device=CPU)
    with torch.no_grad():
        found = model(ids, output_hidden_states=True).hidden_states
    return [states.double().numpy() for states in found[1:]]


def ids_of(sequences: int = 3, length: int = 16, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, tiny_models.VOCAB_SIZE, (sequences, length)))


def match_of(parent: Path, student: Path, *, by_channel: bool = False) -> tuple[Any, Any, StreamMatch]:
    models = [load_model(folder, dtype=torch.float32, device=CPU) for folder in (parent, student)]
    stream = told_of(student)
    streams, spec = Streams(stream), read_spec(parent)
    seen = streams, models[0], spec, ids_of(seed=1).numpy()
    squares = mean_squares(*seen), variances(*seen) if by_channel else ()
    pairs = (models[1], read_spec(student)), (models[0], spec)
    return models[0], models[1], StreamMatch(1.0, streams, *pairs, *squares)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_stream_that_is_only_turned_loses_nothing(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent: Path = request.getfixturevalue(fixture)
    spec, scores = scored(parent)
    plan = plan_of(parent, hidden=24)
    whole = scores.directions.basis(("hidden", None), 32)
    # All directions, and gains that are folded into what reads the stream.
    turned = replace(plan, sizes={}, keep={("hidden", None): whole}, gains=dict.fromkeys(plan.gains, (1.0,)), folds={})
    prune(parent, turned, tmp_path / "turned")
    model, small, match = match_of(parent, tmp_path / "turned")
    with match.watching(ids_of()) as seen, torch.no_grad():
        model(ids_of()), small(ids_of())
        assert sorted(seen.mine) == list(range(len(spec.layers)))
        apart = [float((seen.mine[layer] - seen.theirs[layer]).abs().max()) for layer in seen.mine]
        lost = match.error(seen)
    assert max(apart) < 1e-3 and float(lost) < 1e-6


@pytest.mark.parametrize(("rotate", "by_channel"), [(True, False), (False, False), (True, True)])
def test_the_loss_is_the_formula(rotate: bool, by_channel: bool, tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    layers = tuple(layer for layer in range(len(spec.layers)) if layer != 1)
    plan = plan_of(tiny_hybrid, hidden=24, layers=layers, rotate=rotate)
    prune(tiny_hybrid, plan, tmp_path / "small")
    model, small, match = match_of(tiny_hybrid, tmp_path / "small", by_channel=by_channel)
    ids, held_out = ids_of(), ids_of(seed=1)
    with match.watching(ids) as seen:
        model(ids), small(ids)
    found = match.error(seen)
    cut = plan.keep["hidden", None]

    def target(states: np.ndarray) -> np.ndarray:
        return (states[..., cut] if isinstance(cut, np.ndarray) else states @ cut.matrix)[:, FIRST:]

    mine, theirs, before = streams(tmp_path / "small", ids), streams(tiny_hybrid, ids), streams(tiny_hybrid, held_out)
    parts = []
    # transformers tells of the last layer only what the final norm made of its stream.
    for new, old in enumerate(layers[:-1]):
        errors = (mine[new][:, FIRST:] - target(theirs[old])) ** 2
        unit = target(before[old]).var((0, 1)) if by_channel else np.mean(target(before[old]) ** 2)
        parts.append(np.mean(errors / unit))
    whole = float(found.detach()) * len(layers)
    assert sum(parts) < whole < 3 * sum(parts)
    # Those of the layers before can be told exactly.
    match._mine, match._theirs = match._mine[:-1], match._theirs[:-1]
    with match.watching(ids) as seen:
        model(ids), small(ids)
    assert float(match.error(seen).detach()) == pytest.approx(np.mean(parts), rel=1e-4)


def test_passes_add_up_to_the_batch(small: Path, tiny_hybrid: Path) -> None:
    model, student, match = match_of(tiny_hybrid, small)
    student.requires_grad_(True)
    recipe, ids = replace(RECIPE, batch_tokens=64), ids_of(4)
    objective = Objective(student, model, recipe, stream=match)

    def gradient(*parts: Tensor) -> tuple[float, dict[str, Tensor]]:
        student.zero_grad(set_to_none=True)
        losses = [objective.loss(Pass(part, None, ((0, 0),) * len(part), 64), 0) for part in parts]
        for loss in losses:
            loss.backward()
        return sum(float(loss.detach()) for loss in losses), {n: p.grad.clone() for n, p in student.named_parameters()}

    whole, at_once = gradient(ids)
    split, by_parts = gradient(ids[:1], ids[1:])
    assert split == pytest.approx(whole, rel=1e-5)
    for name, grad in at_once.items():
        torch.testing.assert_close(by_parts[name], grad, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def small(tiny_hybrid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "small"
    prune(tiny_hybrid, plan_of(tiny_hybrid, hidden=24), folder)
    return folder


@pytest.fixture(scope="module")
def whole(small: Path, tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    """The run of RECIPE from the first step to the last."""
    return distill(Distillation(small, tiny_hybrid, short_text, tmp_path_factory.mktemp("whole") / "out"), RECIPE)


def test_a_pruned_student_learns_its_parents_stream(
    whole: DistillResult, small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    blocks = token_blocks(load_tokenizer(small), short_text, sequence_length=16, samples=8)

    def lost(folder: Path) -> float:
        model, student, match = match_of(tiny_hybrid, folder)
        ids = torch.from_numpy(blocks)
        with match.watching(ids) as seen, torch.no_grad():
            model(ids), student(ids)
        return float(match.error(seen))

    found = {}
    for weight in (0.0, 20.0):
        recipe = replace(RECIPE, stream_weight=weight, steps=16, validate_every=16)
        found[weight] = distill(Distillation(small, tiny_hybrid, short_text, tmp_path / f"{weight}"), recipe)
    # Where nobody says, a student that was pruned from its teacher learns its stream.
    assert whole.stream_weight == 20.0 and found[20.0].losses != found[0.0].losses
    ours, none, before = (lost(folder) for folder in (tmp_path / "20.0", tmp_path / "0.0", small))
    assert ours < 0.8 * min(none, before)
    # What was trained says it too, so that a stage after this one can go on.
    told, after = told_of(small), told_of(tmp_path / "20.0")
    assert told.layers == after.layers and isinstance(told.cut, Basis) and isinstance(after.cut, Basis)
    assert np.array_equal(told.cut.matrix, after.cut.matrix)


def test_a_killed_run_goes_on_bit_for_bit(
    whole: DistillResult, small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        distill(Distillation(small, tiny_hybrid, short_text, tmp_path / "out"), RECIPE, progress=stop_after(6, kill))
    steps = [json.loads(line) for line in (tmp_path / "out.work/metrics.jsonl").read_text().splitlines()]
    assert all(line["stream_error"] > 0 for line in steps if "loss" in line)
    require_equal(distill(Distillation(small, tiny_hybrid, short_text, tmp_path / "out"), RECIPE), whole)


def test_recomputed_activations_give_the_same_numbers(
    whole: DistillResult, small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, activation_checkpointing=True)
    again = distill(Distillation(small, tiny_hybrid, short_text, tmp_path / "again"), recipe)
    assert again.losses == pytest.approx(whole.losses, rel=1e-5)


def test_what_is_no_cut_of_the_teacher_is_told(
    small: Path, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    def told(student: Path, teacher: Path, **asked: Any) -> str:
        with pytest.raises(MinitronError) as error:
            distill(
                Distillation(student, teacher, short_text, tmp_path / "out", **asked),
                replace(RECIPE, stream_weight=1.0),
            )
        return str(error.value)

    assert "holds no record of a cut" in told(student, tiny_hybrid)
    pattern = read_spec(tiny_hybrid).letters
    other = tiny_models.save_hybrid(tmp_path / "other", pattern=pattern, seed=7)
    assert "pruned from other weights" in told(small, other)
    # Nobody asked for it: it is left out.
    plain = distill(Distillation(small, other, short_text, tmp_path / "plain"), RECIPE)
    zero = distill(Distillation(small, other, short_text, tmp_path / "zero"), replace(RECIPE, stream_weight=0.0))
    assert plain.losses == zero.losses
    wider = tiny_models.save_hybrid(tmp_path / "wider", pattern=pattern, seed=7, hidden_size=40)
    assert "another config.json" in told(small, wider)
    with pytest.raises(MinitronError, match="random directions are none; drop it"):
        asked = Distillation(small, tiny_hybrid, short_text, tmp_path / "out", offload_teacher=True)
        distill(asked, replace(RECIPE, stream_norm="channel"))
    with pytest.raises(MinitronError, match="choose one of mean-square, channel"):
        replace(RECIPE, stream_norm="layer")


@pytest.mark.parametrize("first", [True, False, None])
@pytest.mark.parametrize("second", [True, False, None])
def test_a_student_of_a_student_knows_both_parents(
    first: bool | None, second: bool | None, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    """True is cut by a basis, False by channels, None not at all."""
    layers = tuple(layer for layer in range(len(read_spec(tiny_hybrid).layers)) if layer != 1)
    plan = plan_of(tiny_hybrid, hidden=32 if first is None else 24, layers=layers, rotate=bool(first))
    prune(tiny_hybrid, plan, tmp_path / "once")
    width = 32 if first is None else 24
    kept = tuple(layer for layer in range(len(layers)) if layer != 2)
    again = plan_of(tmp_path / "once", hidden=width if second is None else 16, layers=kept, rotate=bool(second))
    prune(tmp_path / "once", again, tmp_path / "twice")
    parent, origin = read_stream_maps(tmp_path / "twice", read_spec(tmp_path / "twice"))
    assert parent.layers == kept and origin.layers == tuple(layers[layer] for layer in kept)
    states = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 32))).float()
    between = told_of(tmp_path / "once").of_student(states)
    torch.testing.assert_close(origin.of_student(states), parent.of_student(between), rtol=1e-4, atol=1e-4)
    if (first, second) not in ((True, True), (False, None), (None, False)):
        return  # Each kind of cut is trained with once on either side.
    for teacher in (tmp_path / "once", tiny_hybrid):
        asked = Distillation(tmp_path / "twice", teacher, short_text, tmp_path / f"of-{teacher.name}")
        assert distill(asked, replace(RECIPE, steps=2, validate_every=2)).stream_weight > 0


def test_a_model_in_fewer_bits_learns_its_own_stream_if_asked(
    tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(
        tiny_llama, tiny_llama, short_text, tmp_path / "out", student_format="int4", student_round="nearest"
    )
    found = {
        weight: distill(replace(asked, output=tmp_path / f"{weight}"), replace(RECIPE, stream_weight=weight))
        for weight in (None, 0.0, 5.0)
    }
    assert [found[weight].stream_weight for weight in found] == [0.0, 0.0, 5.0]
    assert found[None].losses == found[0.0].losses != found[5.0].losses


def test_the_command_has_the_option(small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = ["distill", small, "--teacher", tiny_hybrid, "--data", short_text, "-o", tmp_path / "out", "--steps", 2]
    asked += ["--sequence-length", 16, "--batch-tokens", 96, "--stream-weight"]
    assert run([str(one) for one in [*asked, -1]]) == 2
    assert run([str(one) for one in [*asked, 5]]) == 0
    assert "- stream weight: 5.0\n" in (tmp_path / "out/README.md").read_text()


def test_random_directions_tell_the_error_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(1, 6, 40, generator=generator) * torch.logspace(0, -2, 40)
    few = Streams(StreamMap("", None, 40, (0,), None), 8)
    found = [float(few.mine(apart, ids_of(1, 6, seed)).pow(2).mean()) for seed in range(400)]
    exact = float(apart.pow(2).mean())
    assert np.mean(found) == pytest.approx(exact, rel=0.05)
    assert np.std(found) > 0.05 * exact
    # They are those of the sequence, whatever stands beside it.
    ids = torch.cat([ids_of(1, 6, 1), ids_of(1, 6, 2)])
    pair = few.mine(apart.expand(2, -1, -1), ids)
    assert torch.equal(pair[1:], few.mine(apart, ids_of(1, 6, 2)))


def test_a_teacher_that_is_not_there_teaches_the_same_directions(
    small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(
        RECIPE, stream_weight=2.0, stream_directions=8, micro_batch=2, learning_rate=5e-4, steps=4, warmup_steps=1
    )
    plain = distill(Distillation(small, tiny_hybrid, short_text, tmp_path / "plain"), recipe)
    read = distill(Distillation(small, tiny_hybrid, short_text, tmp_path / "read", offload_teacher=True), recipe)
    assert read.losses == pytest.approx(plain.losses, abs=2e-3)
    sampled = replace(recipe, loss="top_k:64")
    asked = [Distillation(small, tiny_hybrid, short_text, tmp_path / name) for name in ("there", "cached", "again")]
    there = distill(asked[0], sampled)
    cached = distill(replace(asked[1], cache=tmp_path / "cache"), sampled)
    offloaded = distill(replace(asked[2], cache=tmp_path / "cache2", offload_teacher=True), sampled)
    assert cached.losses == pytest.approx(there.losses, abs=5e-3)
    assert offloaded.losses == pytest.approx(there.losses, abs=5e-3)
    stored = read_headers(tmp_path / "cache/part-0-000000.safetensors")
    assert stored["streams"].shape[1:] == (16, len(read_spec(tiny_hybrid).layers), 8)
    # Another student's stream is another.
    prune(tiny_hybrid, plan_of(tiny_hybrid, hidden=16), tmp_path / "smaller")
    with pytest.raises(MinitronError, match="another streams"):
        other = replace(asked[0], student=tmp_path / "smaller", output=tmp_path / "other", cache=tmp_path / "cache")
        distill(other, sampled)
    # Who asks for no streams has a cache without.
    distill(
        replace(asked[0], output=tmp_path / "lean", cache=tmp_path / "lean-cache"), replace(sampled, stream_weight=None)
    )
    assert "streams" not in read_headers(tmp_path / "lean-cache/part-0-000000.safetensors")


def test_a_run_with_an_offloaded_teacher_goes_on_bit_for_bit(
    small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=4, validate_every=2, checkpoint_every=2)
    asked = Distillation(small, tiny_hybrid, short_text, tmp_path / "whole", offload_teacher=True)
    whole = distill(asked, recipe)
    assert whole.stream_weight > 0
    asked = replace(asked, output=tmp_path / "out")
    with pytest.raises(Killed):
        distill(asked, recipe, progress=stop_after(3, kill))
    require_equal(distill(asked, recipe), whole)


def run_process(rank: int, folder: Path, asked: Distillation, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    found = distill(asked, recipe, processes=Processes(rank, 2))
    if rank == 0:
        write_json(folder / "found.json", {"losses": found.losses, "weight": found.stream_weight})
    torch.distributed.destroy_process_group()


def test_two_processes_compare_the_same_streams(
    small: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, stream_weight=1.0, learning_rate=5e-4, stream_directions=8)
    asked = Distillation(small, tiny_hybrid, short_text, tmp_path / "many")
    forks.two(run_process, tmp_path, asked, recipe)
    alone = distill(replace(asked, output=tmp_path / "alone"), recipe)
    found = read_json(tmp_path / "found.json")
    assert found["weight"] == 1.0
    assert found["losses"] == pytest.approx(alone.losses, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_show_their_streams(
    tiny_llama: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but the C++, which has no part in what is watched.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    prune(tiny_llama, plan_of(tiny_llama, hidden=24), tmp_path / "small")
    recipe = replace(RECIPE, stream_weight=1.0, learning_rate=5e-4)
    asked = Distillation(tmp_path / "small", tiny_llama, short_text, tmp_path / "plain")
    plain = distill(asked, recipe)
    compiled = distill(replace(asked, output=tmp_path / "compiled"), replace(recipe, compile=True))
    assert compiled.losses == pytest.approx(plain.losses, abs=3e-3)
    zero = distill(replace(asked, output=tmp_path / "zero"), replace(recipe, stream_weight=0.0))
    assert max(abs(one - other) for one, other in zip(zero.losses, plain.losses, strict=True)) > 6e-3
