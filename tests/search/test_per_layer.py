"""Sizes by layer: the choice against brute force, the bytes against transformers' own tensors."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from family_sizes.base import HYBRID_SIZES, PATTERN
from safetensors.torch import load_file
from tiny_models import save_hybrid

from minitron.errors import MinitronError
from minitron.memory.workload import Workload
from minitron.model.spec import read_spec
from minitron.search.per_layer import (
    Layers,
    Option,
    distinct_starts,
    least_damage,
    require_by_layer,
    sizes_to_try,
)
from minitron.search.search_steps import LatticeOptions

WORKLOAD = Workload(context=1, batch=1, weights="fp32")


def random_menus(seed: int, layers: int = 5, steps: int = 7) -> dict[int, tuple[Option, ...]]:
    """Layers that save the same and lose by power laws of their own, with noise that leaves some options pointless."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer in range(layers):
        scale, power = 10 ** rng.uniform(-4, -1), rng.uniform(1, 3)
        cuts = np.linspace(0, 1, steps)
        damages = scale * cuts**power * np.r_[0, rng.uniform(0.7, 1.3, steps - 1)]
        found[layer] = tuple(
            Option({"n": steps - place}, 100 * place + int(rng.integers(0, 20)) * bool(place), float(damages[place]))
            for place in range(steps)
        )
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_nearly_that_of_brute_force(seed: int) -> None:
    menus, saving = random_menus(seed), 1300
    chosen = least_damage(menus, saving)
    assert chosen is not None
    assert sum(option.saved for option in chosen.values()) >= saving
    every = (one for one in product(*menus.values()) if sum(option.saved for option in one) >= saving)
    best = min(sum(option.damage for option in one) for one in every)
    found = sum(option.damage for option in chosen.values())
    alike = min(
        sum(menu[place].damage for menu in menus.values())
        for place in range(7)
        if sum(menu[place].saved for menu in menus.values()) >= saving
    )
    assert best <= found <= 1.25 * best and found < alike


def test_what_cannot_be_saved_is_told() -> None:
    menus = random_menus(0)
    most = sum(menu[-1].saved for menu in menus.values())
    assert least_damage(menus, most + 100) is None
    nothing = least_damage(menus, 0)
    assert nothing is not None and all(option.damage == 0 for option in nothing.values())


def test_options_save_the_bytes_of_what_goes(tmp_path: Path) -> None:
    folder = save_hybrid(tmp_path / "model", pattern=PATTERN + "-")
    spec = read_spec(folder)
    layers = Layers(spec, {}, tuple(range(9)), WORKLOAD)
    menus = layers.menus(lambda key, layer, size: 1 - size / spec.named_sizes[key])
    assert set(menus) == {1, 4, 6, 8}
    tensors = load_file(folder / "model.safetensors")
    width = HYBRID_SIZES["hidden_size"]
    for option in menus[4]:
        assert option.saved == 4 * 2 * width * (HYBRID_SIZES["intermediate_size"] - option.sizes["intermediate_size"])
    smallest = min(menus[6], key=lambda option: sum(option.sizes.values()))
    at = "backbone.layers.6.mixer."
    kept = 0
    for name, tensor in tensors.items():
        if name.startswith(at):
            shares = {"n_routed_experts": ("gate",), "moe_shared_expert_intermediate_size": ("shared_experts",)}
            share = 1.0
            for key, words in shares.items():
                if any(word in name for word in words):
                    share = smallest.sizes[key] / HYBRID_SIZES[key]
            if "mixer.experts" in name:
                share = smallest.sizes["n_routed_experts"] / 6 * smallest.sizes["moe_intermediate_size"] / 24
            kept += tensor.numel() * share
    whole = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(at))
    assert smallest.saved == pytest.approx(4 * (whole - kept))
    # Together they save the sum of what each saves.
    chosen = {1: menus[1][-1], 4: menus[4][1], 6: smallest}
    assert layers.whole - layers.bytes(layers.by_layer(chosen)) == sum(option.saved for option in chosen.values())


def test_what_a_person_leaves_is_left(tmp_path: Path) -> None:
    spec = read_spec(save_hybrid(tmp_path / "model", pattern=PATTERN + "-"))
    assert sizes_to_try(spec, "intermediate_size", LatticeOptions(leave=("ffn",))) == (56,)
    assert min(sizes_to_try(spec, "intermediate_size", LatticeOptions(most={"ffn": 0.25}))) == 48
    assert min(sizes_to_try(spec, "intermediate_size")) == 8
    starts = distinct_starts(spec, (), WORKLOAD)
    assert [start.others for start in starts] == [{}]


def test_a_family_whose_layers_cannot_differ_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(MinitronError, match="--sizes per-layer needs a model whose layers may differ in size"):
        require_by_layer(read_spec(tiny_llama))
