"""The cache of a teacher: what it holds, what it refuses, and that runs learn from it without the teacher."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.app import run
from distill.losses.divergences import Loss, sampled
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from distill.teacher import cache as cache_module
from distill.teacher import teacher_source as teaching
from distill.teacher.cache import TeacherCache
from distill.teacher.loading import load_teacher
from distill.text.data import Text, read_text
from minitron.errors import MinitronError
from minitron.measure.quality import Teacher, measure_quality
from minitron.model.loading import load_model, load_tokenizer
from minitron.progress import Advance

CPU = torch.device("cpu")
ABOUT = {"vocab_size": tiny_models.VOCAB_SIZE, "seed": 0}
RECIPE = Recipe(
    steps=6, sequence_length=16, batch_tokens=96, micro_batch=4, learning_rate=0.01, warmup_steps=2, precision="fp32",
    validation_sequences=6, loss="sampled:12",
)  # fmt: skip


@pytest.fixture
def text(tiny_llama: Path, short_text: Path) -> Text:
    return read_text(load_tokenizer(tiny_llama), short_text, sequence_length=16, validation_sequences=6)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("student") / "model", seed=9, intermediate_size=40)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.teacher.cache.SHARD_TOKENS", 20 * 16)


def write(folder: Path, text: Text, model: Path, **how: Any) -> TeacherCache:
    cache = TeacherCache(folder, text, ABOUT)
    teacher = Teacher(load_model(model, device=CPU), memory=0)
    cache.write(teacher, Loss("sampled", 5), {"perplexity": 3.0}, vocab=300, **how)
    return cache


def test_what_is_kept_is_what_the_teacher_says(tiny_llama: Path, text: Text, tmp_path: Path) -> None:
    cache = write(tmp_path / "cache", text, tiny_llama, batch_size=3)
    assert cache.is_complete and len(list((tmp_path / "cache").glob("part-0-*"))) > 2
    places = ((0, 33), (0, 2))
    found = cache.targets(places)
    assert found.ids.shape == found.weights.shape == found.log_p.shape == (32, 5)
    ids = torch.from_numpy(np.stack([text.parts[part].sequence(number)[0] for part, number in places]))
    with torch.no_grad():
        log_p = torch.log_softmax(load_model(tiny_llama, device=CPU)(ids).logits.float(), -1).flatten(0, 1)
    torch.testing.assert_close(found.log_p, log_p.gather(-1, found.ids), rtol=2**-7, atol=2**-5)
    assert (found.weights.sum(-1) - 1).abs().max() < 1e-5
    # The likeliest is kept with its own probability, or shares with others as likely.
    assert (found.weights.max(-1).values >= log_p.exp().max(-1).values * 0.99).all()
    other = cache.targets(((0, 2),))
    assert torch.equal(other.ids, found.ids[16:])


def test_its_answers_to_the_held_out_text_are_the_teachers(
    tiny_llama: Path, student: Path, text: Text, tmp_path: Path
) -> None:
    cache = write(tmp_path / "cache", text, tiny_llama)
    assert cache.start == {"perplexity": 3.0}
    model, teacher = (
        load_model(student, device=CPU),
        load_teacher(tiny_llama, precision="bf16", device=CPU, blocks=None),
    )
    from minitron.measure.quality import Teacher

    wanted = measure_quality(model, text.validation, teacher=Teacher(teacher.model), batch_size=4)
    found = measure_quality(model, text.validation, teacher=cache.answers(CPU), batch_size=4)
    assert found.kl_to_teacher == pytest.approx(wanted.kl_to_teacher, rel=1e-2)
    assert found.perplexity == wanted.perplexity


def test_a_cache_goes_on_where_it_stopped(tiny_llama: Path, text: Text, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    class Progress:
        def __call__(self, description: str, total: float, unit: str) -> Any:
            return self

        def __enter__(self) -> Advance:
            done = 0

            def advance(amount: float, detail: str = "") -> None:
                nonlocal done
                done += int(amount)
                if done > 700:
                    raise Enough

            return advance  # type: ignore[return-value]

        def __exit__(self, *raised: object) -> None:
            return

    with pytest.raises(Enough):
        write(tmp_path / "cache", text, tiny_llama, progress=Progress())
    first = sorted((tmp_path / "cache").glob("part-0-*"))
    assert len(first) == 2 and not TeacherCache(tmp_path / "cache", text, ABOUT).is_complete
    times = [path.stat().st_mtime_ns for path in first]
    cache = write(tmp_path / "cache", text, tiny_llama)
    assert [path.stat().st_mtime_ns for path in first] == times and cache.is_complete
    whole = write(tmp_path / "whole", text, tiny_llama, batch_size=7)
    for number in (0, 19, 20, 41):
        assert torch.equal(cache.targets(((0, number),)).ids, whole.targets(((0, number),)).ids)


def test_a_damaged_or_foreign_cache_is_refused(tiny_llama: Path, text: Text, tmp_path: Path) -> None:
    write(tmp_path / "cache", text, tiny_llama)
    shard = sorted((tmp_path / "cache").glob("part-0-*"))[1]
    tensors = load_file(shard)
    tensors["ids"][0, 0, 0] += 1
    save_file(tensors, shard, metadata={"sha256": "0"})
    with pytest.raises(MinitronError, match="damaged"):
        TeacherCache(tmp_path / "cache", text, ABOUT).targets(((0, 20),))
    shard.write_bytes(b"half")
    with pytest.raises(MinitronError, match="cannot be read"):
        TeacherCache(tmp_path / "cache", text, ABOUT).targets(((0, 20),))
    with pytest.raises(MinitronError, match="another seed"):
        TeacherCache(tmp_path / "cache", text, ABOUT | {"seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear diary")
    with pytest.raises(MinitronError, match="not a teacher cache"):
        TeacherCache(tmp_path / "mine", text, ABOUT)


def test_runs_learn_from_it_without_the_teacher(
    tiny_llama: Path, student: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = distill(Distillation(student, tiny_llama, short_text, tmp_path / "first", cache=cache), RECIPE)
    assert first.losses[-1] < first.losses[0] and first.kl_after < first.kl_before

    def no_teacher(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(teaching, "load_teacher", no_teacher)
    again = distill(Distillation(student, tiny_llama, short_text, tmp_path / "again", cache=cache), RECIPE)
    assert again.losses == first.losses and again.perplexity_teacher == first.perplexity_teacher
    with pytest.raises(MinitronError, match="another loss"):
        distill(
            Distillation(student, tiny_llama, short_text, tmp_path / "other", cache=cache),
            replace(RECIPE, loss="sampled:3"),
        )


def test_a_cache_answers_on_a_machine_without_the_teachers_weights(
    tiny_llama: Path, student: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(student, tiny_llama, short_text, tmp_path / "there", cache=tmp_path / "cache")
    there = distill(asked, RECIPE)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_llama, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    # Without a cache the weights are missed.
    with pytest.raises(MinitronError, match=r"holds neither model\.safetensors"):
        distill(replace(asked, teacher=bare, output=tmp_path / "none", cache=None), RECIPE)
    with pytest.raises(MinitronError, match=r"holds neither model\.safetensors"):
        distill(replace(asked, teacher=bare, output=tmp_path / "none", cache=tmp_path / "empty"), RECIPE)
    here = distill(replace(asked, teacher=bare, output=tmp_path / "here"), RECIPE)
    assert here.losses == there.losses and here.curve == there.curve
    (tmp_path / "cache/heldout.safetensors").unlink()
    with pytest.raises(MinitronError, match="lacks a part of what the teacher says"):
        distill(replace(asked, teacher=bare, output=tmp_path / "again"), RECIPE)


def test_a_padded_teacher_is_kept_without_its_padding(
    tiny_llama: Path, student: Path, short_text: Path, tmp_path: Path
) -> None:
    wider = tiny_models.padded_vocabulary(tiny_llama, tmp_path / "wider", 20)
    one = distill(Distillation(student, tiny_llama, short_text, tmp_path / "one", cache=tmp_path / "cache one"), RECIPE)
    two = distill(Distillation(student, wider, short_text, tmp_path / "two", cache=tmp_path / "cache two"), RECIPE)
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    assert math.isclose(one.kl_after, two.kl_after, rel_tol=1e-3)


def test_a_cache_as_it_is_typed(
    tiny_llama: Path, student: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", str(student), "--teacher", str(tiny_llama), "--data", str(short_text)]
    arguments += ["-o", str(tmp_path / "out"), "--cache-teacher", str(tmp_path / "cache"), "--sequence-length", "16"]
    arguments += ["--steps", "3", "--batch-tokens", "64", "--device", "cpu", "--dtype", "fp32", "--json"]
    assert run(arguments) == 2
    assert "--loss sampled:12" in capsys.readouterr().err and not (tmp_path / "cache").exists()
    assert run([*arguments, "--loss", "sampled", "--temperature", "2"]) == 2
    capsys.readouterr()
    assert run([*arguments, "--loss", "sampled"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["cache_teacher"] == str(tmp_path / "cache")


def test_sixteen_bits_hold_a_sharp_teacher() -> None:
    from distill.teacher.cache import _narrow

    log_p = torch.log_softmax(torch.tensor([[0.0, -300.0, -float("inf"), -90000.0]]), -1)
    found = sampled(log_p, 3, torch.Generator().manual_seed(0))
    narrow = _narrow(found.log_p, torch.float16)
    assert torch.isfinite(narrow).all() and narrow[0, 0] == 0


def run_process(rank: int, folder: Path, asked: Distillation) -> None:
    torch.set_num_threads(1)
    cache_module.SHARD_TOKENS = 20 * 16
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    seen = []
    plain = TeacherCache._save

    def save(self: TeacherCache, path: Path, tensors: dict[str, Any], **more: str) -> None:
        seen.append(path.name)
        plain(self, path, tensors, **more)

    TeacherCache._save = save  # type: ignore[method-assign]
    distill(asked, RECIPE, processes=Processes(rank, 2))
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def read(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
def test_two_processes_write_it_together(tiny_llama: Path, student: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(student, tiny_llama, short_text, tmp_path / "out", cache=tmp_path / "many")
    forks.two(run_process, tmp_path, asked)
    distill(replace(asked, output=tmp_path / "alone", cache=tmp_path / "one"), RECIPE)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert not set(one) & set(other) and abs(len(one) - 1 - len(other)) <= 1
    for path in (tmp_path / "one").iterdir():
        # safetensors writes the names in its metadata in any order.
        assert read(tmp_path / "many" / path.name) == read(path), path.name
    assert len(one) + len(other) == len(list((tmp_path / "one").glob("*.safetensors")))
