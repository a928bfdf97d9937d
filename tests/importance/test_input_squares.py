"""The mean squares of what linears read, against hooks on the whole model of transformers."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tiny_models import save_hybrid, save_llama

from importance.rounding.squares import input_squares
from minitron.model.dequantised import open_plain
from minitron.model.loading import load_model

CPU = torch.device("cpu")


def by_hooks(folder: Path, blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Module of every linear -> the mean square of each of its inputs, added up in float64."""
    model = load_model(folder, dtype=torch.float32)
    total: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(1, dtype=torch.float64))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                total[name] = total[name] + args[0].double().square().flatten(0, -2).sum(0)

            module.register_forward_pre_hook(hook)
    with torch.inference_mode():
        for block in torch.from_numpy(blocks):
            model(block[None])
    return {name: (one / blocks.size).numpy() for name, one in total.items()}


def test_they_are_those_of_the_whole_model(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(3, 300, (5, 24))
    for folder in (save_llama(tmp_path / "llama"), save_hybrid(tmp_path / "hybrid", pattern="MEM*-E")):
        spec, checkpoint, _ = open_plain(folder)
        found = input_squares(folder, spec, checkpoint, blocks, CPU)
        expected = by_hooks(folder, blocks)
        named = {name.removesuffix(".weight").replace("backbone.", "model."): one for name, one in found.items()}
        alone = {name: one for name, one in named.items() if ".experts." not in name}
        assert len(alone) > 10
        for name, one in alone.items():
            np.testing.assert_allclose(one, expected[name], rtol=2e-4, atol=1e-7, err_msg=name)
        for name, one in named.items():
            if ".experts." in name:
                assert one.shape[0] == spec.sizes["expert"] and (one >= 0).all() and (one.sum(1) > 0).all()


def test_an_expert_without_tokens_counts_as_the_mean_of_the_others(tmp_path: Path) -> None:
    """One sequence of two tokens reaches four of twelve experts at most."""
    folder = save_hybrid(tmp_path / "hybrid", pattern="E*", n_routed_experts=12)
    spec, checkpoint, _ = open_plain(folder)
    found = input_squares(folder, spec, checkpoint, np.array([[7, 9]]), CPU)
    for name in (name for name in found if ".experts." in name and "shared" not in name):
        rows, counts = np.unique(found[name].round(7), axis=0, return_counts=True)
        assert counts.max() >= 8
        others = rows[counts == 1] if (counts == 1).any() else rows
        np.testing.assert_allclose(rows[counts.argmax()], others.mean(axis=0), rtol=1e-3)
