"""Experts that are handed all tokens, those of others as zeros, against a plain rewrite in float64."""

from pathlib import Path

import numpy as np
from family_sizes import FAMILY_SIZES
from slow_importance import blocks_of, close, loaded, quick, record
from tiny_models import save_family

EXPERTS, CHOSEN, WIDTH = 6, 2, 24


def test_experts_that_are_handed_all_tokens_are_scored_on_their_own(tmp_path: Path) -> None:
    """Llama 4: an expert reads a token times the sigmoid of the router's logit, and writes f of that."""
    model, spec = loaded(save_family(tmp_path / "model", "llama4_text", **FAMILY_SIZES["llama4_text"][0]))
    blocks = blocks_of()
    scores = quick(model, spec, blocks)
    for layer in (1, 3):
        at = f"model.layers.{layer}.feed_forward"
        states = record(model, blocks, at)[at][0]
        moe = model.get_submodule(at)
        router = moe.get_parameter("router.weight").double().numpy()
        gate_up, down = (
            moe.get_parameter(f"experts.{name}").double().numpy() for name in ("gate_up_proj", "down_proj")
        )
        logits = states @ router.T
        chosen = np.argsort(-logits, axis=-1)[..., :CHOSEN]
        for expert in range(EXPERTS):
            outputs, channels = [], np.zeros(WIDTH)
            for sample in range(len(states)):
                own = []
                for token in range(states.shape[1]):
                    if expert in chosen[sample, token]:
                        read = states[sample, token] / (1 + np.exp(-logits[sample, token, expert]))
                        gate, up = read @ gate_up[expert][:, :WIDTH], read @ gate_up[expert][:, WIDTH:]
                        inside = up * gate / (1 + np.exp(-gate))
                        own.append(np.abs(inside))
                        outputs.append(np.linalg.norm(inside @ down[expert]))
                if own:
                    channels += np.mean(own, axis=0) ** 2
            close(scores.importance["expert", layer][expert], np.mean(outputs) if outputs else 0.0)
            close(scores.importance["expert_ffn", layer][expert], np.sqrt(channels))
