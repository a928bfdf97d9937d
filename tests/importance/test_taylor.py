"""Activation times gradient: against the change of the loss, and against autograd by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from importance.score.calibrate import calibrate, score_model
from importance.score.options import ScoringOptions
from minitron.errors import MinitronError
from minitron.model.loading import load_model
from minitron.model.spec import read_spec


@pytest.mark.parametrize("family", ["hybrid", "hybrid_latent", "llama", "llama_tied"])
def test_scores_are_first_order_changes_of_the_loss(request: pytest.FixtureRequest, family: str) -> None:
    """A channel's score is what the loss changes by, to first order, when the channel is scaled."""
    folder = request.getfixturevalue(f"tiny_{family}")
    spec = read_spec(folder)
    model = load_model(folder, dtype=torch.float64, device=torch.device("cpu"))
    # The grouped kernel knows no float64.
    model.set_experts_implementation("eager")
    blocks = np.random.default_rng(0).integers(0, spec.sizes["vocab"], (2, 24))
    scores = score_model(
        model, spec, blocks, ScoringOptions(estimator="taylor", layers="none", batch_size=2)
    ).importance
    # Moved by a hair each way, one channel at a time: a central difference.
    axis, layer = next(key for key in scores if key[0] in ("ffn", "shared_ffn"))
    name = {
        "ffn": "mlp.down_proj" if family.startswith("llama") else "mixer.down_proj",
        "shared_ffn": "mixer.shared_experts.down_proj",
    }[axis]
    linear = model.get_submodule(f"model.layers.{layer}.{name}")

    def losses(channel: int, factor: float) -> torch.Tensor:
        def scale(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            changed = args[0].clone()
            changed[..., channel] *= factor
            return (changed,)

        handle = linear.register_forward_pre_hook(scale)
        with torch.no_grad():
            ids = torch.from_numpy(blocks)
            logits = model(input_ids=ids).logits[:, :-1].double()
        handle.remove()
        found = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return found.sum(1)

    # Norms and the scan reckon in fp32 whatever the model is in: a smaller step drowns in that.
    hair = 3e-3
    for channel in (0, 3, 7):
        change = (losses(channel, 1 + hair) - losses(channel, 1 - hair)) / (2 * hair)
        expected = float(change.square().sum().sqrt())
        assert scores[axis, layer][channel] == pytest.approx(expected, rel=5e-3, abs=1e-5)


def test_every_place_that_activations_judge_is_judged(tiny_hybrid: Path) -> None:
    spec = read_spec(tiny_hybrid)
    model = load_model(tiny_hybrid, dtype=torch.float32, device=torch.device("cpu"))
    blocks = np.random.default_rng(0).integers(0, spec.sizes["vocab"], (3, 16))
    plain = score_model(model, spec, blocks, ScoringOptions(estimator="activation", layers="none"))
    back = score_model(model, spec, blocks, ScoringOptions(estimator="taylor", layers="none", batch_size=2))
    assert back.importance.keys() == plain.importance.keys()
    for key, values in back.importance.items():
        assert values.shape == plain.importance[key].shape
        assert values.max() > 0
        if key[0] not in ("expert", "ssm_state"):
            assert not np.allclose(values, plain.importance[key]), key
    # The sums that any estimator takes on the way are the same.
    assert all(np.allclose(values, plain.energy[name], rtol=1e-5) for name, values in back.energy.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_do_not_matter(tiny_llama: Path) -> None:
    spec = read_spec(tiny_llama)
    model = load_model(tiny_llama, dtype=torch.float32, device=torch.device("cpu"))
    blocks = np.random.default_rng(0).integers(0, spec.sizes["vocab"], (4, 16))
    one, four = (
        score_model(model, spec, blocks, ScoringOptions(estimator="taylor", layers="none", batch_size=size)).importance
        for size in (1, 4)
    )
    assert all(np.allclose(values, four[key], rtol=1e-3, atol=1e-7) for key, values in one.items())


def test_gradients_need_the_whole_model(tiny_llama: Path, short_text: Path) -> None:
    with pytest.raises(MinitronError, match="gradients"):
        calibrate(
            tiny_llama,
            short_text,
            ScoringOptions(estimator="taylor", samples=1, sequence_length=16, offload=True),
            device="cpu",
        )
