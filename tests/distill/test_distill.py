"""Distillation from end to end on tiny models: what is learned and what is written."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from distilling import RECIPE, require_equal, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distill.run.distillation import Distillation
from distill.run.objective import Objective
from distill.run.output import write_student
from distill.run.result import DistillResult
from distill.run.train import distill
from distill.text.data import Part, Text, read_text
from distill.text.tokens import Tokens
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer


def test_the_student_comes_nearer_to_its_teacher(undisturbed: DistillResult) -> None:
    longer = undisturbed.curve
    assert [point["step"] for point in longer] == [0, 4, 8]
    assert undisturbed.kl_after < 0.7 * undisturbed.kl_before
    assert undisturbed.steps == len(undisturbed.losses) == 8 and undisturbed.tokens == 8 * 96
    assert json.loads(json.dumps(undisturbed.to_json()))["kl_after"] == undisturbed.kl_after


def test_validation_equals_whole_logits(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path
) -> None:
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    ids = torch.from_numpy(text.validation)
    teacher = load_model(tiny_hybrid, dtype=torch.float32)
    for folder, kl, perplexity in (
        (student, undisturbed.kl_before, undisturbed.perplexity_before),
        (undisturbed.output, undisturbed.kl_after, undisturbed.perplexity_after),
    ):
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(ids).logits.double(), -1)
            log_q = torch.log_softmax(load_model(folder, dtype=torch.float32)(ids).logits.double(), -1)
        assert math.isclose(kl, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel_tol=1e-4)
        nll = -log_q[:, :-1].gather(-1, ids[:, 1:, None]).mean()
        assert math.isclose(perplexity, math.exp(float(nll)), rel_tol=1e-4)


def test_the_first_steps_are_those_of_a_plain_loop(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path
) -> None:
    """Whole logits, one batch without micro-batches, torch's AdamW: the same losses to fp32 rounding."""
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    teacher = load_model(tiny_hybrid, dtype=torch.float32)
    model = load_model(student, dtype=torch.float32).requires_grad_(True)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    losses = []
    for step in range(4):
        ids = torch.from_numpy(text.batch(6 * step, 6, seed=0).ids)
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(ids).logits.float(), -1)
        loss = (log_p.exp() * (log_p - torch.log_softmax(model(ids).logits, -1))).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = [0.01 / 3, 0.02 / 3, 0.01, 0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi / 5))][step]
        optimizer.step()
        losses.append(loss.item())
    assert undisturbed.losses[:4] == pytest.approx(losses, rel=1e-4)


def test_every_kind_of_weight_is_trained_and_the_correction_bias_is_kept(
    undisturbed: DistillResult, student: Path
) -> None:
    before, after = weights(student), weights(undisturbed.output)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.endswith("e_score_correction_bias")} != set()


def test_the_output_is_the_students_folder_with_other_numbers(undisturbed: DistillResult, student: Path) -> None:
    ours, theirs = Checkpoint(undisturbed.output).headers, Checkpoint(student).headers
    assert {name: (header.dtype, header.shape) for name, header in ours.items()} == {
        name: (header.dtype, header.shape) for name, header in theirs.items()
    }
    for file in student.iterdir():
        if file.suffix != ".safetensors":
            assert (undisturbed.output / file.name).read_bytes() == file.read_bytes()
    card = (undisturbed.output / "README.md").read_text()
    assert f"{undisturbed.kl_after:.4f}" in card and "SHA-256" in card and "learning rate: 0.01" in card
    _, info = AutoModelForCausalLM.from_pretrained(undisturbed.output, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [path.name for path in undisturbed.output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_llama_tied"])
def test_a_llama_in_bf16_learns_from_an_fp8_teacher(
    model: str, request: pytest.FixtureRequest, short_text: Path, tmp_path: Path
) -> None:
    student = tiny_models.save_llama(tmp_path / "student", tied=model.endswith("tied"), seed=1, num_hidden_layers=2)
    recipe = replace(RECIPE, precision="bf16", steps=None, tokens=400)
    result = distill(
        Distillation(student, request.getfixturevalue(model), short_text, tmp_path / "out", teacher_precision="fp8"),
        recipe,
    )
    assert result.steps == 4 and result.kl_after < result.kl_before
    assert result.drift is not None and result.drift.stored_bytes < result.drift.bf16_bytes
    assert result.perplexity_teacher == result.drift.perplexity
    assert f"{result.drift.kl:.3g}" in (result.output / "README.md").read_text()
    assert weights(result.output).keys() == weights(student).keys()


def test_what_transformers_does_not_build_is_copied(tiny_hybrid: Path, tmp_path: Path) -> None:
    """A bf16 checkpoint in two shards, with an MTP block, a tied output layer spelt out, and files of its own."""
    student = tmp_path / "student"
    shutil.copytree(tiny_hybrid, student)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(student / "model.safetensors").items()}
    tensors["mtp.layers.0.norm.weight"] = torch.arange(32.0)
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
    (student / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, student / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((student / "config.json").read_text()) | {"tie_word_embeddings": True, "hybrid_extra": "MEM*"}
    (student / "config.json").write_text(json.dumps(config))

    model = load_model(student, dtype=torch.float32)
    with torch.no_grad():
        model.model.embeddings.weight.add_(1)
    write_student(model, student, tmp_path / "out", card="card")
    written = weights(tmp_path / "out")
    tied = model.model.embeddings.weight is model.lm_head.weight
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        changed = name == "backbone.embeddings.weight" or (tied and name == "lm_head.weight")
        expected = (tensor.float() + 1).bfloat16() if changed else tensor
        assert torch.equal(written[name], expected) and written[name].dtype == tensor.dtype
    assert json.loads((tmp_path / "out/config.json").read_text()) == config


def test_batches_depend_on_position_and_seed_alone() -> None:
    tokens = Tokens(np.arange(10, dtype=np.int32), None, 0, ())
    text = Text((Part("ten", 1.0, tokens, 10, 1),), np.zeros((1, 1), dtype=np.int64), {})
    whole = text.batch(0, 30, seed=3).ids[:, 0]
    assert all(sorted(whole[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert not np.array_equal(whole[:10], whole[10:20])
    pieces = [text.batch(start, 7, seed=3).ids[:, 0] for start in range(0, 28, 7)]
    assert np.array_equal(np.concatenate(pieces), whole[:28])
    assert not np.array_equal(text.batch(0, 10, seed=4).ids[:, 0], whole[:10])


def test_no_held_out_sequence_is_trained_on(student: Path, short_text: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(student)
    text = read_text(tokenizer, short_text, sequence_length=16, validation_sequences=100)
    total = text.parts[0].sequences + len(text.validation)
    assert len(text.validation) == total // 10
    trained = [text.parts[0].sequence(number)[0] for number in range(text.parts[0].sequences)]
    joined = np.concatenate([trained, text.validation])
    ids = tokenizer(short_text.read_text(), add_special_tokens=False)["input_ids"]
    assert joined.flatten().tolist() == ids[: total * 16]
    other = tiny_models.write_text(tmp_path / "other.txt", seed=5)
    apart = read_text(tokenizer, short_text, sequence_length=16, validation=other, validation_sequences=7)
    assert apart.parts[0].sequences == total and len(apart.validation) == 7


def test_a_teacher_may_have_a_device_of_its_own(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    result = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", teacher_device="cpu"), RECIPE)
    require_equal(result, undisturbed)
    # There is no second device here that computes; of what crosses over the output layer is copied once.
    small, large = (load_model(folder, device=torch.device("cpu")) for folder in (student, tiny_hybrid))
    objective, head = Objective(small, large, RECIPE), large.get_output_embeddings().weight
    assert objective._teacher_head(0, torch.device("cpu")) is head
    copied = objective._teacher_head(0, torch.device("meta"))
    assert copied.is_meta and copied.shape == head.shape
    assert objective._teacher_head(0, torch.device("meta")) is copied


def test_activations_made_anew_are_the_same(
    undisturbed: DistillResult, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, activation_checkpointing=True)
    assert (
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), recipe).losses == undisturbed.losses
    )


def test_a_teacher_with_a_padded_vocabulary_teaches_the_same(
    student: Path, tiny_hybrid: Path, undisturbed: DistillResult, short_text: Path, tmp_path: Path
) -> None:
    wider = tiny_models.padded_vocabulary(tiny_hybrid, tmp_path / "wider", 20)
    found = distill(Distillation(student, wider, short_text, tmp_path / "out"), RECIPE)
    np.testing.assert_allclose(found.losses, undisturbed.losses, rtol=1e-4)
