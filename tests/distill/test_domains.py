"""Several teachers: each sequence learns from that of its domain, and is held against it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from distilling import CPU, RECIPE, Killed, kill, require_equal, stop_after

from cli.app import run
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.domains import domains_of
from distill.run.objective import Objective, Pass
from distill.run.train import distill
from minitron.errors import MinitronError
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.records import Source, parse_source
from minitron.model.loading import load_model

SHORT = replace(RECIPE, steps=4, checkpoint_every=2, validate_every=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A student and two teachers."""
    folder = tmp_path_factory.mktemp("models")
    return [
        tiny_models.save_llama(folder / f"{seed}", seed=seed, num_hidden_layers=layers)
        for seed, layers in enumerate((2, 3, 3))
    ]


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("texts")
    paths = [tiny_models.write_text(folder / name, seed=seed) for seed, name in enumerate(("plain.txt", "code.txt"))]
    return [Source(str(paths[0]), 0.6), Source(str(paths[1]), 0.4, domain="code")]


def asked(models: list[Path], blend: list[Source], output: Path, **more: Any) -> Distillation:
    return Distillation(models[0], models[1], blend, output, teachers={"code": models[2]}, **more)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("text.txt", Source("text.txt")),
        ("code=text.txt", Source("text.txt", domain="code")),
        ("code=0.3:a=b.txt", Source("a=b.txt", 0.3, "code")),
        ("0.3:code=text.txt", Source("code=text.txt", 0.3)),
    ],
)
def test_a_domain_as_it_is_typed(typed: str, expected: Source) -> None:
    assert parse_source(typed) == expected


def test_a_path_that_is_there_is_no_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code=text.txt").write_text("x")
    assert parse_source("code=text.txt") == Source("code=text.txt")


def test_every_pass_has_the_gradient_of_its_own_teacher(models: list[Path]) -> None:
    student, *teachers = (load_model(folder, dtype=torch.float32, device=CPU) for folder in models)
    student.requires_grad_(True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, tiny_models.VOCAB_SIZE, (2, 12)))
    recipe = Recipe(steps=1, sequence_length=12, batch_tokens=24, precision="fp32")
    objective = Objective(student, teachers[0], recipe, None, None, teachers[1:])
    total = 0.0
    for number in range(2):
        loss = objective.loss(Pass(ids[number : number + 1], None, ((0, 0),), 24, teacher=number), 0)
        loss.backward()
        total += float(loss.detach())
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    with torch.no_grad():
        log_p = torch.cat([teacher(ids[n : n + 1]).logits for n, teacher in enumerate(teachers)]).log_softmax(-1)
    log_q = student(ids).logits.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum() / 24
    expected.backward()
    assert total == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", [{"teacher_precision": "fp8"}, {"offload_teacher": True}])
def test_a_run_of_two_teachers_goes_on(how: Any, models: list[Path], blend: list[Source], tmp_path: Path) -> None:
    whole = distill(asked(models, blend, tmp_path / "whole", **how), SHORT)
    again = asked(models, blend, tmp_path / "again", **how)
    with pytest.raises(Killed):
        distill(again, SHORT, progress=stop_after(3, kill))
    require_equal(distill(again, SHORT), whole)
    assert whole.curve[-1]["kl"] < whole.curve[0]["kl"]


def test_held_out_text_is_held_against_its_own_teacher(
    models: list[Path], blend: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(*given: Any, **named: Any) -> Any:
        found = measure_quality(*given, **named)
        seen.append((given[1], named.get("teacher"), found))
        return found

    monkeypatch.setattr("minitron.measure.quality.measure_quality", watch)
    result = distill(asked(models, blend, tmp_path / "o"), replace(SHORT, steps=1, warmup_steps=0, validate_every=1))
    first = [(blocks, found) for blocks, teacher, found in seen if isinstance(teacher, Teacher)][:2]
    sizes = [len(blocks) for blocks, _ in first]
    assert sizes == [4, 2]
    mean = sum(size * found.kl_to_teacher for size, (_, found) in zip(sizes, first, strict=True)) / sum(sizes)
    assert result.curve[0]["kl"] == pytest.approx(mean)


def test_its_own_answers_are_judged_by_the_domains_teacher(
    models: list[Path], blend: list[Source], tmp_path: Path
) -> None:
    result = distill(asked(models, blend, tmp_path / "o"), replace(SHORT, steps=2, on_policy=0.5))
    assert result.steps == 2 and all(np.isfinite(result.losses))


def test_teachers_and_texts_must_fit(models: list[Path], blend: list[Source], tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=r"of the domain code, which has no teacher; give --teacher code=FOLDER"):
        domains_of(blend, models[1], {})
    with pytest.raises(MinitronError, match="the teacher of law has no text"):
        domains_of(blend, models[1], {"code": models[2], "law": models[2]})
    assert domains_of(blend, models[1], {"code": models[1]}) is None
    request = asked(models, blend, tmp_path / "o")
    with pytest.raises(MinitronError, match="several teachers work with one process only"):
        distill(request, SHORT, processes=Processes(0, 2))
    for recipe, how, words in (
        (replace(SHORT, loss="sampled:4"), {"cache": tmp_path / "c"}, "--cache-teacher"),
        (replace(SHORT, cosine_weight=1.0), {}, "--cosine-weight"),
    ):
        with pytest.raises(MinitronError, match=f"several teachers do not go with {words}"):
            distill(replace(request, **how), recipe)


def test_a_teacher_of_another_tokenizer_is_named(models: list[Path], blend: list[Source], tmp_path: Path) -> None:
    other = tiny_models.save_llama(tmp_path / "other", seed=3)
    text = (other / "tokenizer.json").read_text().replace('"<s>"', '"<begin>"')
    (other / "tokenizer.json").write_text(text)
    request = replace(asked(models, blend, tmp_path / "o"), teachers={"code": other})
    with pytest.raises(MinitronError, match=r"other have different tokenizers"):
        distill(request, SHORT)


def test_both_are_typed(
    models: list[Path], blend: list[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["distill", str(models[0]), "--teacher", f"code={models[2]}", "--teacher", str(models[1])]
    typed += ["--data", f"0.6:{blend[0].place}", "--data", f"code=0.4:{blend[1].place}", "-o", str(tmp_path / "o")]
    typed += ["--steps", "1", "--sequence-length", "16", "--batch-tokens", "64"]
    assert run(typed) == 0
    card = (tmp_path / "o/README.md").read_text()
    assert "domain code" in card
    capsys.readouterr()
    assert run([*typed, "--teacher", str(models[2]), "--overwrite"]) == 2
    assert "two teachers without a domain" in " ".join(capsys.readouterr().err.split())
