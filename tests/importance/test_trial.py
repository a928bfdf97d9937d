"""Trials against float64 by hand; measurements that outlive a killed process; texts that are kept apart."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import random_scores

from importance.score.blocks import require_apart, shared, split_blocks
from importance.search.trial import Trials, plan_digest
from minitron.builtin import CALIBRATION, DISTILL, HELDOUT, MODEL
from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

CPU = torch.device("cpu")


def blocks(seed: int = 0, *, sequences: int = 3, tokens: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (sequences, tokens))


def trials_of(folder: Path, seed: int = 0, **settings: object) -> Trials:
    model = load_model(folder, dtype=torch.float32, device=CPU)
    return Trials(model, read_spec(folder), blocks(seed), **settings)  # type: ignore[arg-type]


def small_plan(folder: Path, **sizes: int) -> Plan:
    spec = read_spec(folder)
    return make_plan(spec, sizes or {"hidden_size": 24}, tuple(range(len(spec.layers)))[1:], random_scores(spec))


@torch.no_grad()
def log_probabilities(folder: Path) -> torch.Tensor:
    """[S, T, V] in float64."""
    model = load_model(folder, dtype=torch.float32, device=CPU)
    return model(torch.from_numpy(blocks())).logits.double().log_softmax(-1)


def test_what_is_tried_is_what_the_written_candidate_says(tiny_hybrid: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_hybrid)
    prune(tiny_hybrid, plan, tmp_path / "small")
    parent, small = log_probabilities(tiny_hybrid), log_probabilities(tmp_path / "small")

    found = trials_of(tiny_hybrid, batch_size=2).run(plan)

    kl = float((parent.exp() * (parent - small)).sum(-1).mean())
    assert kl > 0.01
    assert found.loss == found.kl == pytest.approx(kl, rel=1e-4)
    following = torch.from_numpy(blocks())[:, 1:, None]
    loss = -float(small[:, :-1].gather(-1, following).mean())
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.top1_agreement == pytest.approx(float((parent.argmax(-1) == small.argmax(-1)).double().mean()))
    parents_loss = -float(parent[:, :-1].gather(-1, following).mean())
    by_perplexity = trials_of(tiny_hybrid, objective="perplexity").run(plan)
    assert by_perplexity.loss == pytest.approx(loss - parents_loss, rel=1e-3, abs=1e-5)


def test_the_parent_loses_nothing(tiny_llama: Path) -> None:
    spec = read_spec(tiny_llama)
    found = trials_of(tiny_llama).run(make_plan(spec, {}, tuple(range(len(spec.layers)))))
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1


def test_an_objective_of_ones_own_is_measured_beside_the_parent(tiny_llama: Path) -> None:
    trials = trials_of(tiny_llama, objective=("layers", lambda model: float(model.config.num_hidden_layers)))
    found = trials.run(small_plan(tiny_llama))
    assert found.loss == -1
    assert found.kl > 0
    with pytest.raises(MinitronError, match="'taste' is not an objective; choose one of kl, perplexity"):
        trials_of(tiny_llama, objective="taste")


def test_measurements_are_kept_and_a_torn_line_is_passed_over(tiny_llama: Path, tmp_path: Path) -> None:
    store = tmp_path / "folder" / "measured.jsonl"
    one, other = small_plan(tiny_llama), small_plan(tiny_llama, intermediate_size=40)
    first = trials_of(tiny_llama, store=store)
    found = first.run(one)
    assert first.run(one) is found
    assert first.measured == 1
    with store.open("a") as file:
        file.write('{"key": "half a li')

    second = trials_of(tiny_llama, store=store)
    assert second.run(one) == found
    assert second.measured == 0
    second.run(other)
    third = trials_of(tiny_llama, store=store)
    assert (third.run(one), third.run(other)) == (found, second.run(other))
    assert third.measured == 0

    # Another text, another objective and other weights are measured anew.
    for trials in (trials_of(tiny_llama, 1, store=store), trials_of(tiny_llama, store=store, objective="perplexity")):
        trials.run(one)
        assert trials.measured == 1
    changed = trials_of(tiny_llama, store=store)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[0, 0] += 1
    changed.run(one)
    assert changed.measured == 1


def test_a_file_of_something_else_is_no_store(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("milk\nbread\n")
    with pytest.raises(MinitronError, match="holds no measurements"):
        trials_of(tiny_llama, store=file)


def test_plans_that_cut_the_same_have_one_digest(tiny_hybrid: Path) -> None:
    spec = read_spec(tiny_hybrid)
    layers = tuple(range(len(spec.layers)))
    plan = make_plan(spec, {"hidden_size": 24}, layers, random_scores(spec))
    again = make_plan(
        spec, spec.named_sizes | {"hidden_size": 24}, layers, random_scores(spec), report={"told": "otherwise"}
    )
    assert plan_digest(plan) == plan_digest(again)
    others = [
        make_plan(spec, {"hidden_size": 24}, layers, random_scores(spec, 2)),
        make_plan(spec, {"hidden_size": 24}, layers[1:], random_scores(spec)),
        make_plan(spec, {"hidden_size": 28}, layers, random_scores(spec)),
    ]
    assert len({plan_digest(one) for one in [plan, *others]}) == 4


def test_a_text_is_split_into_sequences_that_calibrate_and_sequences_that_judge() -> None:
    whole = np.arange(11 * 40).reshape(11, 40)
    calibration, judging = split_blocks(whole, 3)
    assert (len(calibration), len(judging)) == (8, 3)
    assert sorted(np.concatenate([calibration, judging]).ravel()) == list(range(whole.size))
    assert np.diff(judging[:, 0]).min() >= 3 * 40
    require_apart(judging, calibration)
    with pytest.raises(MinitronError, match="too few to calibrate"):
        split_blocks(whole, 11)


def test_a_passage_is_known_again_wherever_it_was_cut() -> None:
    text = np.random.default_rng(0).integers(0, 2000, 64 * 100)
    calibration, judging = text[:4096].reshape(-1, 512), text[37 : 37 + 96 * 20].reshape(-1, 96)
    # Counted by hand: a window of 32 is known again unless it runs over the end of a sequence of 512.
    starts = [37 + 96 * row + 32 * place for row in range(20) for place in range(3)]
    inside = [start // 512 == (start + 31) // 512 for start in starts]
    assert shared(judging, calibration) == pytest.approx(np.mean(inside))
    with pytest.raises(MinitronError, match="also used for calibration"):
        require_apart(judging, calibration)
    require_apart(text[4096:].reshape(-1, 96)[:20], calibration)


def test_the_builtin_texts_are_apart() -> None:
    tokenizer = load_tokenizer(MODEL)
    calibration, distill, heldout = (
        token_blocks(tokenizer, text, sequence_length=256, samples=60) for text in (CALIBRATION, DISTILL, HELDOUT)
    )
    require_apart(distill, calibration)
    require_apart(heldout, calibration)
    require_apart(heldout, distill)
