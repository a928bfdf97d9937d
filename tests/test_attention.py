"""Attention by rows against float64, against torch's kernel, and where models call it."""

import itertools
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import distill.attention
from distill.attention import NAME, by_rows, causal_attention, is_faster_here
from distill.data import read_text
from distill.processes import Processes
from distill.recipe import Recipe
from distill.trainer import Trainer
from distill.work import Work
from minitron.loading import load_model, load_tokenizer

CPU = torch.device("cpu")


def draw(
    *, heads: int, key_heads: int, tokens: int, size: int = 16, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Query, key, value and a slope of the output, as attention layers hand them on: [B, T, H, D] in memory."""
    generator = torch.Generator().manual_seed(tokens)
    counts = (heads, key_heads, key_heads, heads)
    drawn = [torch.randn(3, tokens, count, size, generator=generator) * 1.5 for count in counts]
    return [tensor.to(dtype).transpose(1, 2) for tensor in drawn]


def exact(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition, with every score alive."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    later = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
    return ((query @ key.transpose(2, 3)) * scale).masked_fill(later, -torch.inf).softmax(-1) @ value


def torchs(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


def with_slopes(way, drawn: list[Tensor], scale: float) -> list[Tensor]:
    *given, slope = [tensor.detach() for tensor in drawn]
    given = [tensor.requires_grad_() for tensor in given]
    out = way(*given, scale)
    return [out.detach(), *torch.autograd.grad(out, given, slope)]


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("tokens", [1, 63, 64, 130, 192])
@pytest.mark.parametrize("scores", [1, 2**15, 2**18])
def test_it_is_attention_and_its_slopes(
    heads: int, key_heads: int, tokens: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.attention, "_SCORES", scores)
    drawn = draw(heads=heads, key_heads=key_heads, tokens=tokens)
    before = [tensor.clone() for tensor in drawn]
    found = with_slopes(causal_attention, drawn, 0.3)
    expected = with_slopes(exact, [tensor.double() for tensor in drawn], 0.3)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=2e-5)
    assert all(torch.equal(*pair) for pair in zip(drawn, before, strict=True))


@pytest.mark.parametrize("tokens", [128, 300, 512])
def test_in_bf16_its_slopes_are_nearer_to_float64_than_torchs(tokens: int) -> None:
    drawn = draw(heads=6, key_heads=2, tokens=tokens, size=64, dtype=torch.bfloat16)
    expected = with_slopes(exact, [tensor.double() for tensor in drawn], 0.125)

    def errors(way) -> list[float]:
        found = with_slopes(way, drawn, 0.125)
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]

    mine, theirs = errors(causal_attention), errors(torchs)
    # Probabilities are rounded after they are divided by their sum, torch's before.
    assert mine[0] < 1.4 * theirs[0] < 2**-8
    assert all(a < b for a, b in zip(mine[1:], theirs[1:], strict=True))


@pytest.mark.parametrize(("heads", "key_heads", "tokens"), [(6, 2, 130), (3, 3, 64)])
def test_torch_finds_nothing_wrong_with_the_operator(heads: int, key_heads: int, tokens: int) -> None:
    given = [tensor.requires_grad_() for tensor in draw(heads=heads, key_heads=key_heads, tokens=tokens)[:3]]
    torch.library.opcheck(causal_attention, (*given, 0.3))


def test_autocast_computes_in_bf16() -> None:
    drawn = draw(heads=6, key_heads=2, tokens=130)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_slopes(causal_attention, drawn, 0.25)
    rounded = with_slopes(causal_attention, [tensor.bfloat16() for tensor in drawn], 0.25)
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(found, rounded, strict=True))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that come to `causal_attention` out of layers."""
    seen: list[torch.Size] = []
    monkeypatch.setattr(
        distill.attention,
        "causal_attention",
        lambda query, *more: seen.append(query.shape) or causal_attention(query, *more),
    )
    return seen


def logits(model: PreTrainedModel, ids: Tensor, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, **more).logits


def test_layers_call_it_until_the_block_ends(tiny_llama: Path, calls: list[torch.Size]) -> None:
    model = load_model(tiny_llama, dtype=torch.bfloat16, device=CPU)
    ids = torch.arange(256).view(2, 128) % 64
    plain = logits(model, ids)
    with by_rows([model]):
        assert model.config._attn_implementation == NAME
        fast = logits(model, ids)
    assert len(calls) == len(model.base_model.layers) and calls[0][2] == 128
    true = logits(load_model(tiny_llama, dtype=torch.float32, device=CPU), ids)
    assert (fast - true).norm() < 1.2 * (plain - true).norm()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, ids), plain) and len(calls) == len(model.base_model.layers)


def test_hybrids_call_it_in_their_attention_layers(tmp_path: Path, calls: list[torch.Size]) -> None:
    model = load_model(
        tiny_models.save_hybrid(tmp_path / "hybrid", pattern="M*-*", seed=1), dtype=torch.bfloat16, device=CPU
    )
    with by_rows([model]):
        logits(model, torch.arange(128)[None] % 64)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("tokens", "dtype", "padded"),
    [(64, torch.bfloat16, False), (128, torch.float32, False), (128, torch.bfloat16, True)],
    ids=["short", "fp32", "padded"],
)
def test_torchs_kernel_does_what_it_does_not_fit(
    tiny_llama: Path, calls: list[torch.Size], tokens: int, dtype: torch.dtype, padded: bool
) -> None:
    model = load_model(tiny_llama, dtype=dtype, device=CPU)
    ids = torch.arange(2 * tokens).view(2, -1) % 64
    more = {"attention_mask": (torch.arange(tokens) > torch.tensor([[-1], [9]])).long()} if padded else {}
    plain = logits(model, ids, **more)
    with by_rows([model]):
        assert torch.equal(logits(model, ids, **more), plain)
    assert not calls


def test_a_block_that_fails_leaves_models_as_they_were(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, dtype=torch.bfloat16, device=CPU)
    with pytest.raises(RuntimeError, match="mended"), by_rows([model]):
        raise RuntimeError("to be mended")
    assert model.config._attn_implementation == "sdpa"


def test_checkpointed_activations_are_made_anew() -> None:
    drawn = draw(heads=6, key_heads=2, tokens=130)
    plain = with_slopes(causal_attention, drawn, 0.25)
    again = with_slopes(lambda *given: checkpoint(causal_attention, *given, use_reentrant=False), drawn, 0.25)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


@pytest.mark.parametrize("faster", [True, False])
def test_training_steps_call_it_on_cpus_where_it_is_faster(
    tiny_llama: Path, short_text: Path, tmp_path: Path, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch,
    faster: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("distill.trainer.is_faster_here", lambda: faster)
    recipe = Recipe(steps=1, sequence_length=128, batch_tokens=256, micro_batch=1, validation_sequences=1)
    student = load_model(tiny_llama, dtype=torch.float32, device=CPU)
    teacher = load_model(tiny_llama, dtype=torch.bfloat16, device=CPU)
    text = read_text(load_tokenizer(tiny_llama), short_text, sequence_length=128, validation_sequences=1)
    trainer = Trainer(student, teacher, text, recipe, Work(tmp_path / "work"), Processes())
    trainer.validate()
    assert not calls
    trainer.train_step()
    assert len(calls) == (2 * 2 * len(student.base_model.layers) if faster else 0)


@pytest.mark.parametrize(("bf16", "tiles"), itertools.product([False, True], repeat=2))
def test_which_cpus_it_is_faster_on(bf16: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert is_faster_here() is (bf16 and not tiles and threads < 3)
