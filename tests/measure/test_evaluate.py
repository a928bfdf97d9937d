"""Evaluation against plain float64 rewrites, and the command that shows it."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from lm_eval_tasks import task_file
from safetensors.torch import load_file, save_file

from cli.app import run
from minitron.errors import MinitronError
from minitron.measure import quality, speed
from minitron.measure.benchmarks import Benchmarks
from minitron.measure.evaluate import evaluate_folders
from minitron.measure.options import EvaluationOptions
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer


def naive(student: Path, teacher: Path, ids: torch.Tensor) -> tuple[float, float, float]:
    """(perplexity, KL, agreement) on ids [S, T] from the models' whole logits, in float64, a token at a time."""
    logits = {folder: load_model(folder, dtype=torch.float32)(ids).logits.double() for folder in (student, teacher)}
    nll, kl, agreed = [], [], []
    for s in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            q = logits[student][s, t].exp() / logits[student][s, t].exp().sum()
            p = logits[teacher][s, t].exp() / logits[teacher][s, t].exp().sum()
            kl.append(float((p * (p / q).log()).sum()))
            agreed.append(float(q.argmax() == p.argmax()))
            if t + 1 < ids.shape[1]:
                nll.append(-math.log(q[ids[s, t + 1]]))
    return math.exp(np.mean(nll)), float(np.mean(kl)), float(np.mean(agreed))


def test_a_token_without_an_embedding_is_named(tmp_path: Path, short_text: Path, tiny_llama: Path) -> None:
    """The tokenizer has 300 tokens; a text without those beyond the embeddings is measured all the same."""
    options = EvaluationOptions(sequence_length=16, samples=2, speed=False)
    small = tiny_models.save_llama(tmp_path / "small", vocab_size=200)
    for models, against in (([small], None), ([tiny_llama], small)):
        with pytest.raises(MinitronError, match=r"gives the token id 2\d\d and .*small has 200 embeddings"):
            evaluate_folders(models, short_text, options, against=against)
    large = tiny_models.save_llama(tmp_path / "large")
    tokenizer = load_tokenizer(large)
    tokenizer.add_tokens(["<never>"])
    tokenizer.save_pretrained(large)
    assert len(load_tokenizer(large)) == tiny_models.VOCAB_SIZE + 1
    assert evaluate_folders([large], short_text, options)[0].quality.tokens == 32


def test_a_hybrid_that_transformers_cannot_run_with_its_cache_has_quality_and_no_speed(
    tmp_path: Path, short_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: a fresh one imports for seconds, and its numbers are not what is asked for.
    monkeypatch.setattr(speed, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    folder = tiny_models.save_hybrid(tmp_path / "model", pattern="ME")
    options = EvaluationOptions(sequence_length=16, samples=2)
    with pytest.raises(MinitronError, match=r"cannot run .*model with its cache .* pass --no-speed"):
        evaluate_folders([folder], short_text, options)
    assert evaluate_folders([folder], short_text, replace(options, speed=False))[0].quality.tokens == 32


@pytest.mark.parametrize("kind", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"])
def test_quality_is_that_of_whole_logits_in_float64(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, short_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of 7 tokens: several in a batch, the last one short.
    monkeypatch.setattr(quality, "CHUNK_LOGITS", 7 * tiny_models.VOCAB_SIZE)
    student = request.getfixturevalue(kind)
    teacher = tmp_path / "teacher"
    if "hybrid" in kind:
        tiny_models.save_hybrid(teacher, moe_latent_size=16 if "latent" in kind else None)
    else:
        tiny_models.save_llama(teacher, tied="tied" in kind)
    # The student's own weights with a little noise, so that the two agree here and there.
    weights = load_file(teacher / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        weights[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=noise)
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    blocks = token_blocks(load_tokenizer(student), short_text, sequence_length=24, samples=5)

    widths: list[tuple[int, ...]] = []
    model = load_model(student, dtype=torch.float32)
    model.get_output_embeddings().register_forward_hook(lambda *call: widths.append(call[2].shape))
    measured = measure_quality(model, blocks, teacher=Teacher(load_model(teacher, dtype=torch.float32)), batch_size=2)
    perplexity, kl, agreement = naive(student, teacher, torch.from_numpy(blocks))

    assert measured.tokens == blocks.size
    assert measured.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert measured.kl_to_teacher == pytest.approx(kl, rel=1e-4)
    assert measured.top1_agreement == agreement
    assert 0 < kl < 1 and 0 < agreement < 1
    assert max(shape[0] for shape in widths) == 7 and sum(shape[0] for shape in widths) == blocks.size


def test_a_model_is_its_own_equal(tiny_hybrid: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_hybrid), short_text, sequence_length=32, samples=4)
    model, same = (load_model(tiny_hybrid, dtype=torch.float32) for _ in range(2))
    measured = measure_quality(model, blocks, teacher=Teacher(same), batch_size=3)
    assert measured.kl_to_teacher == 0.0
    assert measured.top1_agreement == 1.0


def test_a_teacher_remembers_while_there_is_room(tiny_llama: Path, short_text: Path) -> None:
    blocks = token_blocks(load_tokenizer(tiny_llama), short_text, sequence_length=16, samples=6)
    calls: list[int] = []
    model = load_model(tiny_llama, dtype=torch.float32)
    model.base_model.register_forward_hook(lambda *call: calls.append(1))
    student = load_model(tiny_llama, dtype=torch.float32)
    one_batch = 2 * 16 * 32 * 4
    for memory, expected in ((0, 6), (one_batch, 5), (2**20, 3)):
        calls.clear()
        teacher = Teacher(model, memory)
        first, second = (measure_quality(student, blocks, teacher=teacher, batch_size=2) for _ in range(2))
        assert first == second
        assert len(calls) == expected


def test_without_a_teacher_there_is_no_divergence(tiny_llama: Path, short_text: Path) -> None:
    (found,) = evaluate_folders(
        [tiny_llama], options=EvaluationOptions(sequence_length=32, samples=2, speed=False), text=short_text
    )
    values = found.to_json()
    assert values["kl_to_teacher"] is values["top1_agreement"] is values["peak_memory"] is None
    assert values["parameters"] == sum(p.numel() for p in load_model(tiny_llama).parameters())
    assert values["weight_bytes"] == 4 * values["parameters"]
    assert 1 < values["perplexity"] < 10 * tiny_models.VOCAB_SIZE


def test_damaged_weights_are_told(tiny_llama: Path, short_text: Path) -> None:
    model = load_model(tiny_llama, dtype=torch.float32)
    blocks = token_blocks(load_tokenizer(tiny_llama), short_text, sequence_length=16, samples=2)
    model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(MinitronError, match="not finite"):
        measure_quality(model, blocks)
    model.get_output_embeddings().weight[5] = 1e8
    with pytest.raises(MinitronError, match="no finite perplexity"):
        measure_quality(model, blocks)


def test_one_token_predicts_nothing(tiny_llama: Path) -> None:
    with pytest.raises(MinitronError, match="sequence-length"):
        measure_quality(load_model(tiny_llama), np.zeros((3, 1), dtype=np.int64))


def test_teacher_of_another_vocabulary(tiny_llama: Path, tmp_path: Path, short_text: Path) -> None:
    shorter = tiny_models.save_llama(tmp_path / "shorter", vocab_size=tiny_models.VOCAB_SIZE - 20)
    with pytest.raises(MinitronError, match="has 280 embeddings"):
        evaluate_folders(
            [tiny_llama], options=EvaluationOptions(sequence_length=32, speed=False), against=shorter, text=short_text
        )


def test_padding_of_a_vocabulary_takes_no_part(tiny_hybrid: Path, tmp_path: Path, short_text: Path) -> None:
    student = tiny_models.save_hybrid(tmp_path / "student", seed=3)
    wider = tiny_models.padded_vocabulary(tiny_hybrid, tmp_path / "wider", 20)
    found = [
        evaluate_folders(
            [one],
            options=EvaluationOptions(sequence_length=32, dtype="fp32", speed=False),
            against=other,
            text=short_text,
        )[0].quality
        for one, other in ((student, tiny_hybrid), (student, wider), (wider, tiny_hybrid))
    ]
    assert found[0].kl_to_teacher == pytest.approx(found[1].kl_to_teacher, rel=1e-6)
    assert found[0].top1_agreement == found[1].top1_agreement
    assert found[2].kl_to_teacher == pytest.approx(0, abs=1e-6) and found[2].top1_agreement == 1.0


def test_teacher_of_another_tokenizer(tiny_llama: Path, tmp_path: Path, short_text: Path) -> None:
    other = tiny_models.save_llama(tmp_path / "other")
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    with pytest.raises(MinitronError, match="different tokenizers"):
        evaluate_folders(
            [tiny_llama], options=EvaluationOptions(sequence_length=32, speed=False), against=other, text=short_text
        )


def test_task_of_ones_own(tiny_hybrid: Path, tmp_path: Path) -> None:
    words = ["red", "bread", "birds", "road", "apple", "salt"]
    items = [
        {"query": f"Anna sees {a}", "choices": [b, f"{c} {b}"], "gold": i % 2}
        for i, (a, b, c) in enumerate(zip(words, words[1:] + words[:1], words[2:] + words[:2], strict=True))
    ]
    model, tokenizer = load_model(tiny_hybrid, dtype=torch.float32), load_tokenizer(tiny_hybrid)

    def log_likelihood(query: str, choice: str) -> float:
        start = len(tokenizer(query)["input_ids"])
        ids = torch.tensor([tokenizer(f"{query} {choice}")["input_ids"]])
        log_p = model(ids).logits[0].double().log_softmax(-1)
        return sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))

    right = 0
    for item in items:
        values = [log_likelihood(item["query"], choice) for choice in item["choices"]]
        right += values.index(max(values)) == item["gold"]

    results = Benchmarks([str(task_file(tmp_path, items))]).run(model, tokenizer, batch_size=4)
    assert results["birds"]["acc"] == pytest.approx(right / len(items))
    assert 0 < right < len(items)


def test_tasks_that_are_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="does not exist"):
        Benchmarks([str(tmp_path / "none.yaml")])
    path = task_file(tmp_path, [])
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(MinitronError, match="data of the task"):
        Benchmarks([str(path)]).run(load_model(tiny_llama), load_tokenizer(tiny_llama))


def test_command_measures(
    tiny_llama: Path, tmp_path: Path, short_text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = tiny_models.save_llama(tmp_path / "student", hidden_size=256, intermediate_size=4096, num_hidden_layers=6)
    # What this process holds is not counted as the model's.
    ballast = np.ones(2**29 // 8)
    arguments = ["eval", str(student), "--teacher", str(tiny_llama), "--text", str(short_text), "--dtype", "fp32"]
    assert run([*arguments, "--sequence-length", "64", "--samples", "4", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == {"output", "inputs", "settings", "results", "seconds"}
    found = document["results"][str(student)]
    assert found["prefill_tokens_per_s"] > found["decode_tokens_per_s"] > 0
    assert found["weight_bytes"] == 4 * found["parameters"] > 2**26
    assert found["weight_bytes"] < found["peak_memory"] < found["weight_bytes"] + 2**27 < ballast.nbytes
    assert found["perplexity"] > 1 and found["kl_to_teacher"] > 0 and found["promised"] is None


def test_command_shows_promised_beside_measured(
    tiny_hybrid: Path, tmp_path: Path, short_text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = tiny_models.save_hybrid(tmp_path / "student", pattern="MEM*", seed=3)
    (student / "minitron.json").write_text(json.dumps({"promised": {"parameters": 12345, "weight_bytes": 4 * 12345}}))
    task = task_file(tmp_path, [{"query": "Ben", "choices": ["eats", "finds"], "gold": 0}])
    arguments = ["eval", str(tiny_hybrid), str(student), "--teacher", str(tiny_hybrid), "--text", str(short_text)]
    assert run([*arguments, "--no-speed", "--sequence-length", "64", "--samples", "8", "--tasks", str(task)]) == 0
    table = {line[:24].strip(): line[24:].split() for line in capfd.readouterr().out.splitlines()}
    assert table["parameters, promised"] == ["-", "12,345"]
    written = load_file(student / "model.safetensors").values()
    assert table["parameters, measured"][1] == f"{sum(tensor.numel() for tensor in written):,}"
    assert table["KL to teacher (nats)"][0] == "0" and float(table["KL to teacher (nats)"][1]) > 0.1
    assert table["top-1 agreement"][0] == "100.0%"
    assert len(table["birds acc"]) == 2
    assert "peak memory" not in table


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--device", "gpu"], "no device"),
        (["--device", "cuda:63"], "no GPU cuda:63"),
        (["--sequence-length", "100000"], "less than one sequence"),
        (["--teacher", "nowhere"], "nowhere holds no"),
        (["{model}"], "twice"),
    ],
)
def test_bad_input(
    extra: list[str], message: str, tiny_llama: Path, short_text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = [str(tiny_llama) if part == "{model}" else part for part in extra]
    assert run(["eval", str(tiny_llama), "--text", str(short_text), "--no-speed", *extra]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.out == ""
