"""Models that scale or cap their logits: losses and gradients against the formula over whole logits in float64, and
every place that makes logits of hidden states against transformers' own logits."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from distilling import gradients
from family_sizes import FAMILY_SIZES
from torch import Tensor

from distill.losses.chunked import LossOptions, chunked_loss, sparse_loss
from distill.losses.divergences import Loss, Sparse, parse_loss
from distill.teacher.cache import TeacherCache
from distill.text.data import read_text
from importance.score.depth import removal_scores
from importance.score.gradients import run_and_return
from minitron.errors import MinitronError
from minitron.measure.quality import Teacher, measure_quality
from minitron.model.families import LogitMap, Logits
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.output_layer import output_layer
from minitron.model.spec import read_spec

CPU = torch.device("cpu")
COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
N, H, HT, V, VT = 23, 8, 12, 40, 48
MAPS = [
    (LogitMap(factor=0.25), LogitMap(cap=2.0)),
    (LogitMap(cap=1.5), LogitMap(factor=3.0)),
    (LogitMap(factor=2.0, cap=4.0), LogitMap()),
]


def by_formula(products: Tensor, mapped: LogitMap) -> Tensor:
    scaled = products * mapped.factor
    return scaled if mapped.cap is None else mapped.cap * torch.tanh(scaled / mapped.cap)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, H), (V, H), (N, HT), (VT, HT))
    student, head, teacher, other = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return student.requires_grad_(), head.requires_grad_(), teacher, other


def naive(maps: tuple[LogitMap, LogitMap], temperature: float, following: Tensor | None, lm_weight: float) -> Tensor:
    """Forward KL over whole probabilities."""
    student, head, teacher, other = inputs()
    logits, theirs = by_formula(student @ head.T, maps[0]), by_formula((teacher @ other.T)[:, :V], maps[1])
    q, p = torch.softmax(logits / temperature, -1), torch.softmax(theirs / temperature, -1)
    total = temperature**2 * (p * (p / q).log()).sum()
    if following is not None:
        known = following >= 0
        total = total + lm_weight * torch.nn.functional.cross_entropy(logits[known], following[known], reduction="sum")
    return torch.cat([(total / N)[None], *(one.flatten() for one in torch.autograd.grad(total / N, (student, head)))])


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("lm_weight", "vocab_chunk", "compiled"),
    [
        (0.0, None, False),
        (0.0, 13, False),
        (0.7, None, False),
        (0.7, 13, False),
        pytest.param(0.0, None, True, marks=COMPILES),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(
    maps: tuple[LogitMap, LogitMap], temperature: float, lm_weight: float, vocab_chunk: int | None, compiled: bool
) -> None:
    student, head, teacher, other = inputs()
    following = torch.arange(N) * 7 % V if lm_weight else None
    if following is not None:
        following[::5] = -1
    how = LossOptions(
        student_logits=maps[0],
        teacher_logits=maps[1],
        temperature=temperature,
        lm_weight=lm_weight,
        chunk=6,
        vocab_chunk=vocab_chunk,
        compiled=compiled,
    )
    ours = chunked_loss(parse_loss("forward_kl"), student, head, teacher, other, how, following=following)
    found = torch.cat([ours[None], *(one.flatten() for one in torch.autograd.grad(ours, (student, head)))])
    torch.testing.assert_close(found, naive(maps, temperature, following, lm_weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("maps", MAPS)
def test_divergences_that_need_sums_or_picks_are_mapped_too(maps: tuple[LogitMap, LogitMap]) -> None:
    """The mean of both KLs has no fixed slope; of sampled tokens all, or what was kept of them, are the whole."""
    how = {"student_logits": maps[0], "teacher_logits": maps[1]}
    wanted = naive(maps, 1.0, None, 0.0)
    student, head, teacher, other = inputs()
    log_p = torch.log_softmax(by_formula((teacher @ other.T)[:, :V], maps[1]), -1)
    whole = Sparse(torch.arange(V).expand(N, V), log_p.exp(), log_p)
    for ours in (
        chunked_loss(Loss("sampled", V), student, head, teacher, other, LossOptions(**how)),
        sparse_loss(Loss("sampled", V), student, head, whole, LossOptions(student_logits=maps[0])),
    ):
        found = torch.cat([ours[None], *(one.flatten() for one in torch.autograd.grad(ours, (student, head)))])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    for vocab_chunk in (None, 13):
        loss = chunked_loss(
            parse_loss("jsd"), student, head, teacher, other, LossOptions(**how, vocab_chunk=vocab_chunk)
        )
        logits = by_formula(student @ head.T, maps[0])
        q, p = logits.softmax(-1), log_p.exp()
        middle = (p + q) / 2
        jsd = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
        torch.testing.assert_close(loss, jsd / N, rtol=0, atol=1e-10)
        slopes = torch.autograd.grad(loss, (student, head)), torch.autograd.grad(jsd / N, (student, head))
        for one, other_one in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other_one, rtol=0, atol=1e-10)


def test_logits_are_capped_in_fp32_whatever_the_products_are_in() -> None:
    student, head, teacher, other = (tensor.detach().bfloat16() for tensor in inputs())
    student.requires_grad_(True)
    how = LossOptions(student_logits=LogitMap(cap=1.5), teacher_logits=LogitMap(cap=1.5))
    ours = chunked_loss(parse_loss("forward_kl"), student, head, teacher, other[:V], how)
    logits, theirs = (by_formula(one.double(), LogitMap(cap=1.5)) for one in (student @ head.T, teacher @ other[:V].T))
    wanted = torch.nn.functional.kl_div(
        logits.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    # The products are rounded on both sides alike; nothing after them is.
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a teacher that cap their logits differently, and much."""
    folder = tmp_path_factory.mktemp("capped")
    sizes = FAMILY_SIZES["gemma3_text"][0]
    more = {"tie_word_embeddings": False, "initializer_range": 0.5}
    return (
        tiny_models.save_family(folder / "student", "gemma3_text", **sizes | more | {"final_logit_softcapping": 3.0}),
        tiny_models.save_family(
            folder / "teacher", "gemma3_text", seed=1, **sizes | more | {"final_logit_softcapping": 1.5}
        ),
    )


def test_an_output_layer_gives_transformers_logits(models: tuple[Path, Path]) -> None:
    ids = torch.arange(24)[None] + 3
    for folder, cap in zip(models, (3.0, 1.5), strict=True):
        model = load_model(folder, dtype=torch.float32, device=CPU)
        with torch.no_grad():
            found = output_layer(model)(model.base_model(ids).last_hidden_state)
            torch.testing.assert_close(found, model(ids).logits)
        assert read_spec(folder).logit_map == LogitMap(cap=cap) and found.abs().max() > 0.6 * cap


@pytest.mark.parametrize("streamed", [False, True])
def test_a_student_learns_its_teachers_capped_logits(models: tuple[Path, Path], streamed: bool) -> None:
    found, expected = gradients(models, streamed=streamed)
    for name, wanted in expected.items():
        apart = (found[name] - wanted).norm() / wanted.norm()
        assert apart < (2e-2 if streamed else 1e-4), name


def test_a_cache_keeps_capped_probabilities_and_the_cap(
    models: tuple[Path, Path], short_text: Path, tmp_path: Path
) -> None:
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


def test_gradients_and_the_worth_of_layers_are_those_of_capped_logits(models: tuple[Path, Path]) -> None:
    model, spec = load_model(models[1], dtype=torch.float32, device=CPU), read_spec(models[1])
    blocks = np.random.default_rng(0).integers(3, tiny_models.VOCAB_SIZE, (2, 16))
    ids, seen = torch.from_numpy(blocks), []
    norm = model.base_model.norm
    norm.register_full_backward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    run_and_return(model, ids)
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.detach().requires_grad_())
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").backward()
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        scores, _ = removal_scores(model, spec, blocks, max_dropped=1)
        log_p = model(ids).logits.log_softmax(-1)
        layer = int(scores.argmin())
        # transformers' own model without that layer: what it reads is what it gives.
        model.base_model.layers[layer].forward = lambda states, **arguments: states
        log_q = model(ids).logits.log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum() / ids.numel())
    assert scores[layer] == pytest.approx(kl, rel=1e-3)


def test_what_is_no_positive_number_is_refused_by_name() -> None:
    logits = Logits(factor="scale", divisor="over", cap="cap")
    assert logits.read({"scale": 2, "over": 8.0, "cap": None}.get) == LogitMap(0.25)
    for key, value in (("scale", 0), ("scale", None), ("over", "8"), ("cap", -1.0), ("cap", True)):
        with pytest.raises(MinitronError, match=f"{key} is {value!r}"):
            logits.read({"scale": 1.0, "over": 1.0, "cap": 1.0, key: value}.get)
