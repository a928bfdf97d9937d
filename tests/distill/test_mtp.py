"""The multi-token-prediction block of a student: computed as vLLM does, trained beside the rest, written back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import pytest
import tiny_models
import torch
from cuts import add_mtp
from torch import Tensor, nn
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock

from cli.app import run
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.loop import Stopped
from distill.run.mtp import Predictor, measure_drafts
from distill.run.objective import Objective, Pass
from distill.run.train import distill
from distill.run.trainer import Trainer
from minitron.errors import MinitronError
from minitron.measure.quality import Teacher, hidden_states
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model

CPU = torch.device("cpu")
RECIPE = Recipe(
    steps=6, sequence_length=16, batch_tokens=64, micro_batch=2, learning_rate=0.01, warmup_steps=0, precision="fp32",
    validate_every=3, validation_sequences=4, checkpoint_every=2, mtp_weight=0.5, mtp_lm_weight=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid with a block of attention and experts."""
    folder = tiny_models.save_hybrid(
        tmp_path_factory.mktemp("student") / "model", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4
    )
    add_mtp(folder, {})
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def norm(states: Tensor, weight: Tensor) -> Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-5) * weight


def drafted(folder: Path, model: Any, states: Tensor, embedded: Tensor) -> Tensor:
    """The block by hand, from the checkpoint's own tensors, in the order of vLLM's nemotron_h_mtp."""
    found = {name: tensor.float() for name, tensor in tensors(folder).items() if name.startswith("mtp.")}
    at = "mtp.layers.0."
    joined = torch.cat([norm(embedded, found[at + "enorm.weight"]), norm(states, found[at + "hnorm.weight"])], -1)
    x = joined @ found[at + "eh_proj.weight"].T
    # Attention without positions.
    h = norm(x, found[at + "norm.weight"])
    width = model.config.head_dim
    heads, kv = model.config.num_attention_heads, model.config.num_key_value_heads
    q, k, v = (
        (h @ found[f"{at}mixer.{name}_proj.weight"].T).unflatten(-1, (count, width)).transpose(1, 2)
        for name, count in (("q", heads), ("k", kv), ("v", kv))
    )
    k, v = (one.repeat_interleave(heads // kv, dim=1) for one in (k, v))
    mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    weights = ((q @ k.transpose(-1, -2)) / width**0.5).masked_fill(mask, -torch.inf).softmax(-1)
    x = x + (weights @ v).transpose(1, 2).flatten(-2) @ found[at + "mixer.o_proj.weight"].T
    # Experts: transformers' own block, its weights put in by hand.
    at, config = "mtp.layers.1.", Predictor(folder, model).body.config
    block = NemotronHBlock(config, 1)
    state = {}
    for name in block.state_dict():
        if name in ("mixer.experts.up_proj", "mixer.experts.down_proj"):
            rows = [found[f"{at}mixer.experts.{e}.{name.rpartition('.')[2]}.weight"] for e in range(4)]
            state[name] = torch.stack(rows)
        else:
            state[name] = found[at + name]
    block.load_state_dict(state)
    with torch.no_grad():
        x = block(x)
    return norm(x, found[at + "final_layernorm.weight"])


def test_it_is_computed_as_its_formulas_say(student: Path) -> None:
    model = load_model(student, dtype=torch.float32, device=CPU)
    predictor = Predictor(student, model)
    ids = torch.arange(24).view(2, 12) * 7 % 300
    with torch.no_grad():
        states = hidden_states(model, ids)
        embedded = model.get_input_embeddings()(ids[:, 1:])
        ours = predictor(states[:, :-1], embedded)
        wanted = drafted(student, model, states[:, :-1], embedded)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    stored = tensors(student)
    back = dict(predictor.stored(student))
    assert back.keys() == {name for name in stored if name.startswith("mtp.")}
    assert all(torch.equal(tensor.float(), stored[name]) for name, tensor in back.items())


@pytest.mark.parametrize("loss", ["forward_kl", "jsd:0.5"])
def test_its_loss_is_that_of_whole_logits(loss: str, student: Path, tiny_hybrid: Path) -> None:
    model = load_model(student, dtype=torch.float32, device=CPU).requires_grad_(True)
    teacher = load_model(tiny_hybrid, dtype=torch.float32, device=CPU)
    predictor, ids = Predictor(student, model), torch.arange(30).view(3, 10) * 11 % 300
    recipe = replace(RECIPE, loss=loss, mtp_lm_weight=0.25 if loss == "forward_kl" else 0.0)
    counted = torch.arange(10).expand(3, 10) >= 3
    both = Objective(model, teacher, recipe, predictor).loss(Pass(ids, counted, (), 17), 0)
    alone = Objective(model, teacher, replace(recipe, mtp_weight=0.0, mtp_lm_weight=0.0)).loss(
        Pass(ids, counted, (), 17), 0
    )
    head = model.get_output_embeddings()
    drafts = predictor(hidden_states(model, ids)[:, :-1], model.get_input_embeddings()(ids[:, 1:]))
    log_q, log_p = head(drafts).log_softmax(-1), teacher(ids).logits[:, 1:].log_softmax(-1)
    if loss == "forward_kl":
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
    else:
        log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
        each = sum(0.5 * (one.exp() * (one - log_m)).sum(-1) for one in (log_p, log_q))
    # A draft at t is of token t + 2, and counts where that is to be learnt.
    learnt = torch.zeros(3, 9, dtype=torch.bool)
    learnt[:, :-1] = counted[:, 2:]
    wanted = (each * learnt).sum()
    if loss == "forward_kl":
        nll = -log_q[:, :-1].gather(-1, ids[:, 2:, None])[..., 0]
        wanted = wanted + 0.25 * (nll * learnt[:, :-1]).sum()
    torch.testing.assert_close(both - alone, 0.5 * wanted / 17, rtol=1e-4, atol=1e-5)


def test_it_learns_and_is_written_back(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    found = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), RECIPE)
    before, after = found.curve[0], found.curve[-1]
    assert after["mtp_kl"] < 0.9 * before["mtp_kl"] and 0 <= after["mtp_acceptance"] <= 1
    card = (tmp_path / "out/README.md").read_text()
    assert f"accepts {after['mtp_acceptance']:.1%} of them ({before['mtp_acceptance']:.1%} before training)" in card
    old, new = tensors(student), tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    assert all(not torch.equal(old[name], new[name]) for name in old if name.startswith("mtp.") and "bias" not in name)
    # What was measured is what was written.
    model = load_model(tmp_path / "out", dtype=torch.float32, device=CPU)
    teacher = Teacher(load_model(tiny_hybrid, dtype=torch.float32, device=CPU))
    blocks = read_held_out(student, short_text)
    told = measure_drafts(model, Predictor(tmp_path / "out", model), blocks, teacher, 2)
    assert told["mtp_kl"] == pytest.approx(after["mtp_kl"], rel=1e-4)
    assert told["mtp_acceptance"] == after["mtp_acceptance"]


def read_held_out(student: Path, text: Path) -> Any:
    from distill.text.data import read_text
    from minitron.model.loading import load_tokenizer

    return read_text(load_tokenizer(student), text, sequence_length=16, validation_sequences=4).validation


def test_a_run_that_stopped_goes_on_with_it(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, loss="sampled:16", mtp_lm_weight=0.0)
    whole = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "whole"), recipe)
    step = Trainer.train_step

    def stops(self: Trainer) -> dict[str, Any]:
        if self.step == 3:
            raise Stopped
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "train_step", stops)
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), recipe)
    again = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), recipe)
    assert again.losses == whole.losses and again.curve == whole.curve
    one, other = tensors(again.output), tensors(whole.output)
    assert all(torch.equal(one[name], other[name]) for name in one)


def run_process(rank: int, folder: Path, asked: Distillation) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    distill(asked, RECIPE, processes=Processes(rank, 2))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_it_as_one(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "many")
    forks.two(run_process, tmp_path, asked)
    distill(replace(asked, output=tmp_path / "alone"), RECIPE)
    many, alone = tensors(tmp_path / "many"), tensors(tmp_path / "alone")
    for name, tensor in alone.items():
        torch.testing.assert_close(many[name], tensor, rtol=0, atol=2e-3)


def test_from_a_cache(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, loss="top_k:300")
    cached = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out", cache=tmp_path / "cache"), recipe)
    plain = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "plain"), recipe)
    assert cached.losses == pytest.approx(plain.losses, rel=1e-2)


def test_it_is_trained_alone_behind_a_model_that_stays(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, train="mtp", mtp_weight=1.0, mtp_lm_weight=0.0, temperature=2.0, select="best")
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    result = distill(asked, recipe)
    before, after = tensors(student), tensors(tmp_path / "out")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all(name.startswith("mtp.") for name in changed)
    assert {point["kl"] for point in result.curve} == {result.curve[0]["kl"]}
    drafts = [point["mtp_kl"] for point in result.curve]
    assert result.selected["mtp_kl"] == min(drafts[1:]) < drafts[0]
    # The loss is that of the drafts alone, at the temperature, times its square (Hinton et al. 2015, section 2).
    model = load_model(student, dtype=torch.float32, device=CPU).requires_grad_(False)
    teacher, predictor = load_model(tiny_hybrid, dtype=torch.float32, device=CPU), Predictor(student, model)
    ids = torch.arange(30).view(3, 10) * 11 % 300
    loss = Objective(model, teacher, recipe, predictor).loss(Pass(ids, None, (), 30), 0)
    states = predictor(hidden_states(model, ids)[:, :-1], model.get_input_embeddings()(ids[:, 1:]))
    log_q = (model.get_output_embeddings()(states) / 2).log_softmax(-1)
    log_p = (teacher(ids).logits[:, 1:] / 2).log_softmax(-1)
    assert loss.item() == pytest.approx(4 * (log_p.exp() * (log_p - log_q)).sum().item() / 30, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mtp_weight": 0.0}, "give an MTP weight"),
        ({"lm_weight": 0.1}, "lm weight"),
        ({"stream_weight": 1.0}, "stream"),
    ],
)
def test_nothing_else_is_taught_beside_a_block_alone(changed: dict[str, float], words: str) -> None:
    with pytest.raises(MinitronError, match=words):
        replace(RECIPE, **({"train": "mtp", "mtp_lm_weight": 0.0} | changed))


def test_where_there_is_none(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(tiny_hybrid, tmp_path / "bare")
    model = load_model(student, dtype=torch.float32, device=CPU)
    with pytest.raises(MinitronError, match="no multi-token-prediction block"):
        Predictor(bare, model)
    with pytest.raises(MinitronError, match="give an MTP weight"):
        Recipe(steps=1, mtp_lm_weight=0.5)
    with pytest.raises(MinitronError, match="or alone"):
        Recipe(steps=1, mtp_weight=0.5, train="router")
    arguments = ["--data", str(short_text), "--steps", "2", "--sequence-length", "16", "--batch-tokens", "32"]
    arguments += ["-o", str(tmp_path / "out"), "--mtp-weight", "0.3"]
    assert run(["distill", str(bare), "--teacher", str(student), *arguments]) == 2
    assert "drop --mtp-weight" in capsys.readouterr().err
    assert run(["distill", str(student), "--teacher", str(bare), *arguments, "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)["results"]["curve"]
    assert all({"mtp_kl", "mtp_acceptance"} <= point.keys() for point in curve)
    assert isinstance(Predictor(tmp_path / "out", model).eh_proj, nn.Linear)
