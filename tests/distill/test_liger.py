"""liger-kernel's loss: what is passed to it, against a stand-in that does what its documentation says."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cli.app import run
from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import parse_loss
from distill.losses.liger import liger_loss
from distill.recipe import Recipe
from distill.run.request import require_liger
from minitron.errors import MinitronError

RECIPE = Recipe(steps=1, loss_kernel="liger")


class Jsd:
    """LigerFusedLinearJSD: the mean over rows of beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q;
    KL(P || Q) for a beta of 0 and KL(Q || P) for 1."""

    def __init__(self, jsd_beta: float, accum_dtype: torch.dtype) -> None:
        assert accum_dtype == torch.float32
        self.beta = jsd_beta

    def __call__(self, states: Tensor, head: Tensor, theirs: Tensor, their_head: Tensor, labels: None) -> Tensor:
        log_q, log_p = ((x @ w.T).log_softmax(-1) for x, w in ((states, head), (theirs, their_head)))
        p, q = log_p.exp(), log_q.exp()
        if self.beta in (0, 1):
            each = p * (log_p - log_q) if self.beta == 0 else q * (log_q - log_p)
        else:
            log_m = (self.beta * p + (1 - self.beta) * q).log()
            each = self.beta * p * (log_p - log_m) + (1 - self.beta) * q * (log_q - log_m)
        return each.sum() / len(states)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(LigerFusedLinearJSD=Jsd)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=engine))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", engine)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd:0.3"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("stand_in")
def test_it_is_asked_for_the_same_loss(name: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, theirs, head, their_head = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 6), (9, 8), (20, 6), (20, 8))
    )
    student.requires_grad_(True), head.requires_grad_(True)
    mask = torch.arange(9) % 3 != 0 if masked else None
    ours = chunked_loss(
        parse_loss(name), student, head, theirs, their_head, options=LossOptions(divisor=11.0), mask=mask
    )
    fused = liger_loss(parse_loss(name), student, head, theirs, their_head, mask=mask, divisor=11.0)
    torch.testing.assert_close(fused, ours)
    for one, other in zip(
        torch.autograd.grad(fused, (student, head)), torch.autograd.grad(ours, (student, head)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"loss": "skewed_kl"}, "skewed_kl"),
        ({"loss": "sampled"}, "sampled"),
        ({"temperature": 2.0}, "temperature of 2"),
        ({"lm_weight": 0.1}, "LM weight"),
        ({"vocab_chunk": 8}, "vocab chunk"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_it_is_refused_where_it_is_not_exact(changed: dict[str, object], word: str) -> None:
    require_liger(RECIPE, same_vocabulary=True, cached=False)
    with pytest.raises(MinitronError, match=word):
        require_liger(replace(RECIPE, **changed), same_vocabulary=True, cached=False)  # type: ignore[arg-type]
    with pytest.raises(MinitronError, match="vocabularies"):
        require_liger(RECIPE, same_vocabulary=False, cached=False)
    with pytest.raises(MinitronError, match="cache"):
        require_liger(RECIPE, same_vocabulary=True, cached=True)
    with pytest.raises(MinitronError, match="scales or caps"):
        require_liger(RECIPE, same_vocabulary=True, cached=False, plain_logits=False)


def test_without_it_one_is_told(
    tiny_hybrid: Path, tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["distill", str(tiny_hybrid), "--teacher", str(tiny_llama), "--data", str(short_text), "--steps", "1"]
    assert run([*arguments, "-o", str(tmp_path / "out"), "--loss-kernel", "liger"]) == 2
    assert "needs liger-kernel and a GPU" in capsys.readouterr().err
    assert run([*arguments, "-o", str(tmp_path / "out"), "--loss-kernel", "other"]) == 2
    assert "own, liger" in capsys.readouterr().err
