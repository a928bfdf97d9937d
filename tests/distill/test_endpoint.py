"""Answers of an OpenAI-compatible server: what it is asked and may say, and what becomes of a run when it fails."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from completions_server import Choice, Completions, serving
from distilling import CPU, RECIPE

from cli.app import run
from distill.policy import KEY
from distill.policy.endpoint import EndpointAnswers, EndpointError
from distill.policy.generation import LocalAnswers
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.errors import MinitronError
from minitron.model.loading import load_model, load_tokenizer

PROMPTS = np.arange(3, 15).reshape(2, 6)
OWN = replace(RECIPE, steps=4, on_policy=0.5, checkpoint_every=4, validate_every=2)


def echo(prompts: list[list[int]], most: int) -> list[Choice]:
    """The last token of the prompt, again and again."""
    return [{"token_ids": row[-1:] * most, "text": "", "finish_reason": "length"} for row in prompts]


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


def answers(url: str, tokenizer: Any, **how: Any) -> EndpointAnswers:
    fields: dict[str, Any] = {"stops": frozenset({2}), "known_tokens": 300, "length": 3, "sleep": lambda seconds: None}
    return EndpointAnswers(url, None, tokenizer, **fields | how)


def test_tokens_go_and_tokens_come(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with serving(Completions(echo, key="secret")) as server:
        assert answers(server.url, tokenizer).answer(PROMPTS, 2**40 + 5) == [[8, 8, 8], [14, 14, 14]]
        (asked,) = server.asked
        assert asked["prompt"] == PROMPTS.tolist() and asked["model"] == "student" and asked["seed"] == 5
        assert (asked["max_tokens"], asked["temperature"], asked["top_p"]) == (3, 1.0, 1.0)


def test_text_becomes_tokens_and_its_end_is_one(tokenizer: Any) -> None:
    def answer(prompts: list[list[int]], most: int) -> list[Choice]:
        return [{"text": "bread", "finish_reason": "stop"} for _ in prompts]

    with serving(Completions(answer, strict=True)) as server:
        answering = answers(server.url, tokenizer, length=30)
        wanted = [*tokenizer("bread", add_special_tokens=False)["input_ids"], 2]
        assert answering.answer(PROMPTS, 0) == [wanted, wanted]
        # What a strict server refuses is not asked of it twice.
        answering.answer(PROMPTS, 0)
        assert ["return_token_ids" in each for each in server.asked] == [True, False, False]


@pytest.mark.parametrize(
    "reply",
    [
        (500, "oh no", {}),
        (429, "slowly", {"Retry-After": "7"}),
        (0, "", {}),
        (-1, '{"choices": [{"te', {}),
        (200, '{"choices": [{"te', {}),
    ],
)
def test_what_may_pass_is_tried_again(reply: tuple[int, str, dict[str, str]], tokenizer: Any) -> None:
    pauses: list[float] = []
    with serving(Completions(echo)) as server:
        answering = answers(server.url, tokenizer, patience=0.3, pause=2.0, sleep=pauses.append)
        answering.model = "student"
        server.replies = [reply, reply]
        assert answering.answer(PROMPTS, 0) == [[8, 8, 8], [14, 14, 14]]
        assert pauses == ([7.0, 7.0] if reply[0] == 429 else [2.0, 4.0])
        if reply[0] == 0:
            return
        server.replies = [reply] * 9
        with pytest.raises(EndpointError, match=r"no answer in 5 tries .* run the same command again to resume"):
            answering.answer(PROMPTS, 0)
        assert len(server.replies) == 4


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, "<html>Welcome</html>", {}), "is a web page"),
        ((200, "[]", {}), "has no choices"),
        ((200, '{"choices": []}', {}), "0 answers to 2 prompts"),
        ((404, "no \x1b[31mmodel", {}), r"answers 404: no \\x1b\[31mmodel; check"),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), "answers 302"),
        ((403, "", {}), f"refuses the key .403.; put the right one into {KEY}"),
    ],
)
def test_what_is_no_answer_is_refused(reply: tuple[int, str, dict[str, str]], words: str, tokenizer: Any) -> None:
    with serving(Completions(echo, replies=[reply])) as server:
        answering = answers(server.url, tokenizer)
        answering.model = "student"
        with pytest.raises(EndpointError, match=words):
            answering.answer(PROMPTS, 0)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"token_ids": [5, 300]}, "tokens that the student does not know"),
        ({"token_ids": ["5"]}, "no numbers"),
        ({"token_ids": []}, "an empty answer"),
        ({}, "without text or token ids"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(choice: Choice, words: str, tokenizer: Any) -> None:
    whole = Completions(lambda prompts, most: [choice] * len(prompts))
    with serving(whole) as server, pytest.raises(EndpointError, match=words):
        answers(server.url, tokenizer).answer(PROMPTS, 0)


def test_an_address_is_checked_and_holds_no_key(tokenizer: Any) -> None:
    for url, words in {"localhost:8000": "no address", "http://me:key@host/v1": f"put a key into {KEY}"}.items():
        with pytest.raises(MinitronError, match=words):
            answers(url, tokenizer)
    words = r"serves 2 models \(one, two\); give --on-policy-model"
    with serving(Completions(echo, models=("one", "two"))) as server, pytest.raises(EndpointError, match=words):
        answers(server.url, tokenizer).answer(PROMPTS, 0)


def said_by(folder: Path) -> Any:
    """What a server of that checkpoint says, with log-probabilities as transformers has them."""
    model = load_model(folder, dtype=torch.float32, device=CPU)
    local = LocalAnswers(model, frozenset(), tiny_models.VOCAB_SIZE, 8)

    def answer(prompts: list[list[int]], most: int) -> list[Choice]:
        rows = np.asarray(prompts)
        found = local.answer(rows, len(rows))
        with torch.no_grad():
            log_p = model(torch.from_numpy(np.hstack([rows, found])), use_cache=False).logits.log_softmax(-1)
        said = [
            [float(log_p[i, rows.shape[1] - 1 + place, token]) for place, token in enumerate(row)]
            for i, row in enumerate(found)
        ]
        return [
            {"token_ids": row, "finish_reason": "length", "logprobs": {"token_logprobs": one}}
            for row, one in zip(found, said, strict=True)
        ]

    return answer


def test_a_run_tells_how_old_the_server_is(tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    student, notes = tiny_models.save_llama(tmp_path / "s", seed=1, num_hidden_layers=2), list[str]()
    with serving(Completions(said_by(student))) as server:
        asked = Distillation(student, tiny_llama, short_text, tmp_path / "o", on_policy_endpoint=server.url)
        distill(asked, OWN, note=notes.append)
        assert len(server.asked) == 4
    told = [float(note.split(" is ")[1].split()[0].rstrip(",")) for note in map(_after_that, notes) if note]
    # Before the first step they are one; two steps later they are not.
    assert len(told) == 2 and abs(told[0]) < 1e-4 < abs(told[1])


def _after_that(note: str) -> str | None:
    return note.replace("a student that is", "is") if note.startswith("The endpoint's student is") else None


def test_what_was_trained_is_kept_when_the_server_dies(
    tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    student = tiny_models.save_llama(tmp_path / "s", seed=1, num_hidden_layers=2)
    monkeypatch.setattr("distill.policy.endpoint._LONGEST_PAUSE", 0.0)
    typed = [
        "distill",
        str(student),
        "--teacher",
        str(tiny_llama),
        "--data",
        str(short_text),
        "-o",
        str(tmp_path / "o"),
    ]
    typed += ["--steps", "4", "--sequence-length", "16", "--batch-tokens", "64", "--on-policy", "0.5"]
    with serving(Completions(echo)) as server:

        def dies(prompts: list[list[int]], most: int) -> list[Choice]:
            if len(server.asked) == 3:
                server.replies = [(503, "gone", {})] * 9
            return echo(prompts, most)

        server.answer = dies
        assert run([*typed, "--on-policy-endpoint", server.url, "--checkpoint-every", "4"]) == 2
        assert "answers 503: gone" in " ".join(capsys.readouterr().err.split())
        assert (tmp_path / "o.work/checkpoints/step-00000002").is_dir()
        server.replies, server.answer = [], echo
        assert run([*typed, "--on-policy-endpoint", server.url, "--checkpoint-every", "4"]) == 0
    assert "Resuming after step 2" in capsys.readouterr().err
