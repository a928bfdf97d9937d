"""Importance: every formula against a plain rewrite in float64, on models of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from slow_importance import (
    ATTENTION,
    GROUPS,
    HEADS,
    MAMBA,
    MLP,
    MOE,
    SEQUENCES,
    TOKENS,
    Array,
    blocks_of,
    close,
    loaded,
    quick,
    record,
    slow_energy,
    slow_experts,
    slow_importance,
)
from torch import nn
from transformers import PreTrainedModel

from importance.score.depth import removal_scores
from importance.score.observe import observing
from importance.score.totals import Totals
from minitron.arrays import spread
from minitron.cut.scores import Scores
from minitron.model.spec import ModelSpec


def test_channels_of_mlps_and_heads_of_attention(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    seen = record(model, blocks, *(f"model.layers.{layer}.mixer.o_proj" for layer in ATTENTION))
    seen |= record(model, blocks, *(f"model.layers.{layer}.mixer.down_proj" for layer in MLP))
    seen |= record(model, blocks, *(f"model.layers.{layer}.mixer.shared_experts.down_proj" for layer in MOE))
    for layer in MLP:
        close(scores.importance["ffn", layer], slow_importance(seen[f"model.layers.{layer}.mixer.down_proj"][0]))
    for layer in MOE:
        inside = seen[f"model.layers.{layer}.mixer.shared_experts.down_proj"][0]
        close(scores.importance["shared_ffn", layer], slow_importance(inside))
    for layer in ATTENTION:
        channels = slow_importance(seen[f"model.layers.{layer}.mixer.o_proj"][0]).reshape(4, 12)
        expected = np.array([np.sqrt(sum(value**2 for value in head)) for head in channels])
        close(scores.importance["query_head", layer], expected)


def test_llama(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    norms = ["model.norm"]
    for layer in range(4):
        at = f"model.layers.{layer}."
        norms += [at + "input_layernorm", at + "post_attention_layernorm"]
        seen = record(model, blocks, at + "mlp.down_proj", at + "self_attn.o_proj")
        close(scores.importance["ffn", layer], slow_importance(seen[at + "mlp.down_proj"][0]))
        channels = slow_importance(seen[at + "self_attn.o_proj"][0]).reshape(4, 12)
        close(scores.importance["query_head", layer], np.linalg.norm(channels, axis=1))
    check_norms(scores, record(model, blocks, *norms), norms)
    assert set(scores.energy) == {f"{norm}.weight" for norm in norms}
    assert {axis for axis, _ in scores.importance} == {"hidden", "ffn", "query_head"}


def check_norms(scores: Scores, seen: dict[str, tuple[Array, ...]], norms: list[str]) -> None:
    """Hidden channels and the energy of every norm of the residual stream."""
    squares = sum(slow_importance(seen[norm][-1]) ** 2 for norm in norms)
    close(scores.importance["hidden", None], np.sqrt(squares))
    for norm in norms:
        close(scores.energy[f"{norm}.weight"], slow_energy(seen[norm][0], 1))


def test_hidden_channels_and_energy(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    norms = [f"model.layers.{layer}.norm" for layer in range(8)] + ["model.norm_f"]
    check_norms(scores, record(model, blocks, *norms), norms)
    gated = [f"model.layers.{layer}.mixer.norm" for layer in MAMBA]
    assert set(scores.energy) == {f"{norm}.weight" for norm in [*norms, *gated]}
    seen = record(model, blocks, *gated)
    for norm in gated:
        states, gate, _ = seen[norm]
        close(scores.energy[f"{norm}.weight"], slow_energy(states * gate / (1 + np.exp(-gate)), GROUPS))


def test_energy_of_a_dead_token_is_nothing(tiny_llama: Path) -> None:
    model, spec = loaded(tiny_llama)
    model.get_input_embeddings().weight[7] = 0
    found = quick(model, spec, np.full((1, 4), 7)).energy["model.layers.0.input_layernorm.weight"]
    assert (found == 0).all()


def test_state_space_input_of_mamba(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    seen = record(model, blocks, *(f"model.layers.{layer}.mixer.in_proj" for layer in MAMBA))
    for layer in MAMBA:
        out = seen[f"model.layers.{layer}.mixer.in_proj"][-1]
        assert out.shape[-1] == 80 + 80 + 32 + 32 + 8
        found = scores.importance["mamba_channel", layer]
        assert found.shape == (HEADS, 10)
        close(found.ravel(), slow_importance(out[..., 80:160]))


def check_experts(model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64]) -> Scores:
    scores = quick(model, spec, blocks)
    for layer in MOE:
        states = record(model, blocks, f"model.layers.{layer}.mixer")[f"model.layers.{layer}.mixer"][0]
        latent = model.get_submodule(f"model.layers.{layer}.mixer.fc1_latent_proj")
        with torch.no_grad():
            inputs = latent(torch.from_numpy(states).float()).double().numpy()
        expected, channels = slow_experts(model, layer, states, inputs)
        close(scores.importance["expert", layer], expected)
        close(scores.importance["expert_ffn", layer], channels)
    return scores


def test_experts_by_their_own_tokens(tiny_hybrid: Path) -> None:
    check_experts(*loaded(tiny_hybrid), blocks_of())


def test_the_correction_bias_is_on(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    before = quick(model, spec, blocks_of())
    for layer in MOE:
        # Nearly every token is sent to expert 4, and none to expert 1.
        gate: Any = model.get_submodule(f"model.layers.{layer}.mixer.gate")
        gate.e_score_correction_bias[4] = 3.0
        gate.e_score_correction_bias[1] = -3.0
    after = check_experts(model, spec, blocks_of())
    for layer in MOE:
        assert before.importance["expert", layer][1] > 0
        assert after.importance["expert", layer][1] == 0
        assert (after.importance["expert_ffn", layer][1] == 0).all()
        assert after.importance["expert", layer][4] > 0


def test_latent_channels(tiny_hybrid_latent: Path) -> None:
    model, spec = loaded(tiny_hybrid_latent)
    blocks = blocks_of()
    scores = check_experts(model, spec, blocks)
    for layer in MOE:
        at = f"model.layers.{layer}.mixer."
        seen = record(model, blocks, at + "fc1_latent_proj", at + "fc2_latent_proj")
        into, out = seen[at + "fc1_latent_proj"][-1], seen[at + "fc2_latent_proj"][0]
        close(scores.importance["latent_in", layer], slow_importance(into.reshape(SEQUENCES, TOKENS, 16)))
        close(scores.importance["latent_out", layer], slow_importance(out.reshape(SEQUENCES, TOKENS, 16)))


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama", "tiny_llama_tied"])
def test_every_axis_that_can_be_cut_is_covered(name: str, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name))
    scores = quick(model, spec, blocks_of(2), layers="fast")
    found = {axis for axis, _ in scores.importance}
    # A head of Mamba is ranked by its channels, a head of keys and values by its query heads; the widths of attention
    # heads are cut to directions (importance.score.balanced_bases); how many experts a token is sent to has no indices.
    implied = {"mamba_head", "mamba_head_dim", "kv_head", "qk_head_dim", "v_head_dim", "active_expert"}
    assert spec.axes - spec.family.fixed - implied == found - {"mamba_channel", "layer"}
    norms = {tensor.name for tensor in spec.expected() if tensor.rule.norm}
    assert set(scores.energy) == norms
    shapes = {tensor.name: tensor.shape for tensor in spec.expected()}
    for name, values in scores.energy.items():
        assert values.shape == shapes[name]
        assert values.mean() == pytest.approx(1, rel=1e-5)


def test_batches_do_not_matter(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    one, other = (quick(model, spec, blocks_of(), layers="fast", batch_size=size) for size in (1, 4))
    for key, values in one.importance.items():
        np.testing.assert_allclose(other.importance[key], values, rtol=1e-4)
    for name, values in one.energy.items():
        np.testing.assert_allclose(other.energy[name], values, rtol=1e-4)


def hooks_of(model: nn.Module) -> int:
    own = sum("forward" in module.__dict__ for module in model.modules())
    return own + sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_hybrid_latent", "tiny_llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_observing_changes_nothing(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    model, spec = loaded(request.getfixturevalue(name), dtype)
    ids = torch.from_numpy(blocks_of())
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with observing(model, spec, Totals(), influence=True):
            assert hooks_of(model) > 0
            observed = model(input_ids=ids).logits
        assert hooks_of(model) == 0
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(observed, plain)


def test_observed_experts_agree_with_every_implementation(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    ids = torch.from_numpy(blocks_of())
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        with torch.no_grad():
            plain = model(input_ids=ids).logits
            with observing(model, spec, Totals()):
                observed = model(input_ids=ids).logits
        torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)


def test_hooks_go_when_the_forward_pass_fails(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    last = model.get_submodule("model.norm_f")

    def fail(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        quick(model, spec, blocks_of())
    with pytest.raises(KeyboardInterrupt):
        removal_scores(model, spec, blocks_of())
    handle.remove()
    assert hooks_of(model) == 0


def test_a_model_in_training_is_put_back(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    model.train()
    with pytest.raises(ValueError, match="eval mode"), observing(model, spec, Totals()):
        pass
    quick(model, spec, blocks_of(1))
    assert model.training


def test_memory_does_not_grow_with_the_samples(tiny_hybrid: Path) -> None:
    """Also where a caller forgets no_grad: the sums keep no graph alive."""
    model, spec = loaded(tiny_hybrid)
    model.requires_grad_(True)
    totals = Totals()
    sizes = []
    with observing(model, spec, totals, influence=True):
        for seed in range(4):
            model.base_model(input_ids=torch.from_numpy(blocks_of(3, seed=seed)))
            kept = list(totals.sums.values())
            assert not any(tensor.requires_grad for tensor in kept)
            # A view would keep the activations alive that it looks at.
            sizes.append((len(kept), sum(tensor.untyped_storage().nbytes() for tensor in kept)))
    assert len(set(sizes)) == 1
    scored = sum(values.size for values in [*quick(model, spec, blocks_of(1)).energy.values()])
    assert sizes[0][1] < 8 * 60 * scored


def test_bf16_ranks_as_fp32_does(tiny_hybrid: Path) -> None:
    wide, narrow = (quick(*loaded(tiny_hybrid, dtype), blocks_of()) for dtype in (torch.float32, torch.bfloat16))
    for key, values in wide.importance.items():
        if key[0] in ("hidden", "ffn", "shared_ffn", "query_head", "mamba_channel"):
            np.testing.assert_allclose(narrow.importance[key], values, rtol=0.1, atol=0.02 * values.max())


def test_spread() -> None:
    assert spread(100, 3).tolist() == [0, 50, 99]
    assert spread(2, 16).tolist() == [0, 1]
    assert spread(5, 1).tolist() == [0]
