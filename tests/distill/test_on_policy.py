"""Sequences that the student writes itself: who writes what, what is learnt of it, and that it can go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import tiny_models
import torch
from distilling import CPU, RECIPE, Killed, kill, require_equal, stop_after, weights
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, LlamaModel

from cli.app import run
from distill.policy.generation import LocalAnswers
from distill.policy.prompts import is_own, join, prompt
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.objective import Objective, Pass
from distill.run.train import distill
from distill.text.data import Part
from distill.text.tokens import Tokens
from minitron.errors import MinitronError
from minitron.model.loading import load_model

OWN = replace(RECIPE, steps=4, on_policy=0.5, checkpoint_every=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("small") / "model", seed=1, num_hidden_layers=2)


def prompts_of(sequences: int = 3, length: int = 6) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(3, tiny_models.VOCAB_SIZE, (sequences, length))


def local(folder: Path, **how: Any) -> LocalAnswers:
    model = load_model(folder, dtype=torch.float32, device=CPU)
    fields = {"stops": frozenset[int](), "known_tokens": tiny_models.VOCAB_SIZE, "length": 5, "temperature": 0.0}
    return LocalAnswers(model, **fields | how)


def greedy(model: Any, row: NDArray[np.int64], length: int, vocab: int) -> list[int]:
    """Token by token, each from a whole pass."""
    ids = torch.from_numpy(row[None])
    with torch.no_grad():
        for _ in range(length):
            likeliest = model(ids, use_cache=False).logits[:, -1, :vocab].argmax(-1, keepdim=True)
            ids = torch.cat([ids, likeliest], 1)
    return ids[0, len(row) :].tolist()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_a_share_of_sequences_is_its_own_evenly_spread(share: float) -> None:
    own = np.cumsum([is_own(number, share) for number in range(1000)])
    assert np.abs(own - share * np.arange(1, 1001)).max() <= 1 + 1e-9


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_hybrid"])
def test_it_says_what_its_logits_say(fixture: str, request: pytest.FixtureRequest) -> None:
    answering, prompts, vocab = local(request.getfixturevalue(fixture)), prompts_of(), tiny_models.VOCAB_SIZE - 40
    answering.known_tokens = vocab
    # What a folder says of sampling is another's distribution.
    answering.student.generation_config.repetition_penalty = 50.0
    found = answering.answer(prompts, 0)
    assert found == [greedy(answering.student, row, 5, vocab) for row in prompts]
    assert answering.student.generation_config.repetition_penalty == 50.0 and answering.told is None
    answering.stops = frozenset({found[0][1]})
    assert answering.answer(prompts, 0)[0] == found[0][:2]


def test_chance_follows_from_the_seed_and_disturbs_no_other(tiny_llama: Path) -> None:
    answering, prompts = local(tiny_llama, temperature=1.0), prompts_of()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, other = answering.answer(prompts, 1), answering.answer(prompts, 2)
    assert first == answering.answer(prompts, 1) != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_student_without_a_cache_writes_all_the_same(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, whole = local(tiny_llama).answer(prompts_of(), 0), LlamaModel.forward

    def forward(self: LlamaModel, *given: Any, **named: Any) -> Any:
        if named.get("use_cache"):
            raise NotImplementedError("no cache")
        return whole(self, *given, **named)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    answering = local(tiny_llama)
    assert answering.answer(prompts_of(), 0) == plain
    assert answering.told is not None and "without" not in answering.told and "cache" in answering.told
    monkeypatch.setattr(LlamaForCausalLM, "can_generate", classmethod(lambda cls: False))
    with pytest.raises(MinitronError, match=r"does not generate text .* drop --on-policy"):
        local(tiny_llama).answer(prompts_of(), 0)


def test_a_cache_that_says_something_else_is_not_used(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, whole = local(tiny_llama).answer(prompts_of(), 0), LlamaModel.forward

    def forward(self: LlamaModel, *given: Any, **named: Any) -> Any:
        found = whole(self, *given, **named)
        if named.get("use_cache"):
            found.last_hidden_state = -found.last_hidden_state
        return found

    monkeypatch.setattr(LlamaModel, "forward", forward)
    assert local(tiny_llama).answer(prompts_of(), 0) == plain


def marked(counted: list[int], length: int) -> Part:
    ids = np.arange(len(counted), dtype=np.int32)
    tokens = Tokens(ids, np.asarray(counted, dtype=np.bool_), 0, ())
    return Part("talk", 1.0, tokens, len(counted) // length, length)


def test_prompts_end_where_the_assistant_begins() -> None:
    counted = [0] * 32
    counted[1], counted[11:14], counted[26:29] = 1, [1] * 3, [1] * 3
    part = marked(counted, 8)
    # Of the first sequence and the second the turn at 11; of the third the one at 26; of the last the first again.
    found = [prompt(part, number, 4).tolist() for number in range(4)]
    assert found == [[7, 8, 9, 10], [7, 8, 9, 10], [22, 23, 24, 25], [22, 23, 24, 25]]
    assert prompt(marked(counted[:26] + [0] * 6, 8), 3, 4).tolist() == [7, 8, 9, 10]
    with pytest.raises(MinitronError, match="no turn of the assistant"):
        prompt(marked([0] * 32, 8), 0, 4)
    plain = Part("text", 1.0, Tokens(np.arange(32, dtype=np.int32), None, 0, ()), 4, 8)
    assert prompt(plain, 2, 4).tolist() == [16, 17, 18, 19]


@pytest.mark.parametrize(("loss", "weight"), [("reverse_kl", 1.0), ("jsd:0.3", 0.3)])
def test_the_answers_tokens_alone_are_learnt(loss: str, weight: float, small: Path, tiny_llama: Path) -> None:
    student = load_model(small, dtype=torch.float32, device=CPU).requires_grad_(True)
    teacher = load_model(tiny_llama, dtype=torch.float32, device=CPU)
    written = join(prompts_of(2), [[5, 6, 7], [8]], 12, filler=2)
    assert written.counted.sum(1).tolist() == [3, 1] and (written.ids[1, 7:] == 2).all()
    ids, counted = torch.from_numpy(written.ids), torch.from_numpy(written.counted)
    # Neither the text's loss nor its examples have a part in it.
    recipe = Recipe(steps=1, sequence_length=12, batch_tokens=24, precision="fp32", on_policy_loss=loss, lm_weight=3.0)
    part = Pass(ids, counted, ((0, 0), (0, 1)), 4.0, is_own=True)
    value = Objective(student, teacher, recipe).loss(part, 0)
    value.backward()
    found = {name: parameter.grad.double().clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    student.double(), teacher.double()
    log_q = student(ids).logits[:, :-1][counted[:, 1:]].log_softmax(-1)
    with torch.no_grad():
        log_p = teacher(ids).logits[:, :-1][counted[:, 1:]].log_softmax(-1)
    if loss == "reverse_kl":
        expected = (log_q.exp() * (log_q - log_p)).sum() / 4
    else:
        mixed = (weight * log_p.exp() + (1 - weight) * log_q.exp()).log()
        both = weight * log_p.exp() * (log_p - mixed) + (1 - weight) * log_q.exp() * (log_q - mixed)
        expected = both.sum() / 4
    expected.backward()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_killed_run_writes_the_same_again(small: Path, tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    whole = distill(Distillation(small, tiny_llama, short_text, tmp_path / "whole"), OWN)
    again = Distillation(small, tiny_llama, short_text, tmp_path / "again")
    with pytest.raises(Killed):
        distill(again, OWN, progress=stop_after(3, kill))
    lines = (tmp_path / "again.work/metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    # The mean of both halves is the whole.
    assert all(0 < line["on_policy_loss"] / 2 < line["loss"] for line in steps)
    require_equal(distill(again, OWN), whole)
    assert whole.curve[-1]["kl"] < whole.curve[0]["kl"]


def run_process(rank: int, folder: Path, asked: Distillation, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    distill(asked, recipe, processes=Processes(rank, 2))
    torch.distributed.destroy_process_group()


def test_two_processes_write_as_one(small: Path, tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    # Without chance, and all of it their own: nothing depends on who writes what.
    recipe = replace(OWN, steps=2, on_policy=1.0, on_policy_temperature=0.0)
    distill(Distillation(small, tiny_llama, short_text, tmp_path / "one"), recipe)
    asked = Distillation(small, tiny_llama, short_text, tmp_path / "two", device="cpu")
    forks.two(run_process, tmp_path, asked, recipe)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--on-policy", "1.5"], "share is 1.5"),
        (["--on-policy", "0.5", "--on-policy-loss", "top_k:4"], "give reverse_kl or jsd:0.5"),
        (["--on-policy", "0.5", "--on-policy-answer", "16"], "leave nothing of a sequence of 16 for the prompt"),
        (["--on-policy", "0.5", "--cache-teacher", "kept", "--loss", "sampled:4"], "drop --cache-teacher"),
        (["--on-policy", "0.5", "--offload-teacher"], "drop --offload-teacher or --on-policy"),
        (["--on-policy-endpoint", "http://localhost:1/v1"], "give --on-policy SHARE too"),
        (["--on-policy", "0.5", "--on-policy-model", "me"], "give --on-policy-endpoint too"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    typed: list[str], words: str, small: Path, tiny_llama: Path, short_text: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    paths = ["distill", str(small), "--teacher", str(tiny_llama), "--data", str(short_text), "-o", str(tmp_path / "o")]
    assert run([*paths, "--steps", "2", "--sequence-length", "16", "--batch-tokens", "64", *typed]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(tmp_path / "o.work", ignore_errors=True)
