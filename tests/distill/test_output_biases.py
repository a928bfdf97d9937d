"""Output layers with a bias: losses and gradients against transformers' own logits."""

from pathlib import Path

import pytest
import tiny_models
import torch
from distilling import gradients
from family_sizes import FAMILY_SIZES

from distill.losses.divergences import Loss
from distill.teacher.cache import TeacherCache
from distill.text.data import read_text
from minitron.measure.quality import Teacher, measure_quality
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.output_layer import output_layer, widened

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a teacher whose biases are large."""
    folder = tmp_path_factory.mktemp("biased")
    found = []
    for seed, name in enumerate(("student", "teacher")):
        path = tiny_models.save_family(folder / name, "phimoe", seed=seed, **FAMILY_SIZES["phimoe"][0])
        model = load_model(path, dtype=torch.float32, device=CPU)
        model.lm_head.bias.data.copy_(2 * torch.randn(300, generator=torch.Generator().manual_seed(seed)))
        model.save_pretrained(path)
        found.append(path)
    return found[0], found[1]


def test_the_matrix_of_an_output_layer_holds_its_bias(models: tuple[Path, Path]) -> None:
    model = load_model(models[0], dtype=torch.float32, device=CPU)
    ids = torch.arange(24)[None] + 3
    with torch.no_grad():
        states, layer = model.model(ids).last_hidden_state, output_layer(model)
        torch.testing.assert_close(widened(states, layer.matrix) @ layer.matrix.T, model(ids).logits)
    assert layer.matrix.shape == (300, 33)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_student_learns_its_teachers_biases(models: tuple[Path, Path], streamed: bool) -> None:
    found, expected = gradients(models, streamed=streamed)
    assert found["lm_head.bias"].abs().max() > 1e-3
    for name in ("lm_head.bias", "lm_head.weight", "model.norm.bias", "model.layers.3.self_attn.o_proj.weight"):
        wanted = expected[name]
        apart = (found[name] - wanted).norm() / wanted.norm()
        assert apart < (3e-2 if streamed else 1e-4), name


def test_a_cache_keeps_probabilities_and_the_bias(models: tuple[Path, Path], short_text: Path, tmp_path: Path) -> None:
    student, teacher = (load_model(folder, dtype=torch.float32, device=CPU) for folder in models)
    text = read_text(load_tokenizer(models[1]), short_text, sequence_length=16, validation_sequences=6)
    cache = TeacherCache(tmp_path / "cache", text, {"vocab_size": tiny_models.VOCAB_SIZE, "seed": 0})
    cache.write(Teacher(teacher, memory=0), Loss("sampled", 5), {"perplexity": 3.0}, vocab=tiny_models.VOCAB_SIZE)
    found = cache.targets(((0, 2),))
    with torch.no_grad():
        log_p = teacher(torch.from_numpy(text.parts[0].sequence(2)[0])[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(found.log_p, log_p.gather(-1, found.ids), rtol=2**-9, atol=2**-9)
    wanted = measure_quality(student, text.validation, teacher=Teacher(teacher))
    told = measure_quality(student, text.validation, teacher=cache.answers(CPU))
    assert told.kl_to_teacher == pytest.approx(wanted.kl_to_teacher, rel=1e-5)
