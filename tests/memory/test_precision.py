"""Quantised weights against the bytes of published checkpoints."""

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import planning_models
import pytest
from planning_models import MODELS, published, tiny

from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS, STORED, Format, formats_for, named_in_config
from minitron.memory.precision import precision_of, tally, tally_of, weight_bytes
from minitron.memory.questions import mildest_first
from minitron.memory.workload import workload_of
from minitron.search.search import build_lattice
from minitron.units import GiB

CHECKPOINTS = json.loads((MODELS.parent / "quantized_checkpoints.json").read_text())
NANO, SUPER = "Nemotron-3-Nano-30B-A3B", "Nemotron-3-Super-120B-A12B"


@pytest.mark.parametrize(("model", "weights"), [(NANO, "nvfp4"), (NANO, "fp8"), (SUPER, "nvfp4")])
def test_published_mixtures_are_reproduced_to_the_byte(model: str, weights: str) -> None:
    spec = published(model)
    found = sum(weight_bytes(spec, tally_of(spec, precision_of(spec, weights)), spec.sizes))
    assert found == CHECKPOINTS[f"{model}-{weights.upper()}"]["bytes"]


def test_the_dense_recipe_loads_what_was_published() -> None:
    """9B-FP8 loads 9.6 GiB, the 9B in bf16 16.5557 GiB (vLLM)."""
    spec = published("Nemotron-Nano-9B-v2")
    whole, fp8 = (footprint(spec, workload_of(spec, 1, weights=name)).weights / GiB for name in ("bf16", "fp8"))
    assert (round(whole, 3), round(fp8, 1)) == (16.556, 9.6)


def test_super_counts_its_matrices_as_published() -> None:
    spec = published(SUPER)
    parts = tally_of(spec, precision_of(spec, "nvfp4")).parts
    experts = {True: spec.sizes["expert"], False: 1}
    matrices = {
        form: sum(part.count * experts["expert" in part.rule.pattern.axes] for part in parts if part.form.name == form)
        for form in ("nvfp4", "fp8")
    }
    assert matrices == {"nvfp4": 40_961, "fp8": 139}


def test_the_mamba_layers_in_front_of_attention_stay_wide() -> None:
    spec = tiny("MEM*MM*")
    for part in tally_of(spec, precision_of(spec, "fp8")).parts:
        if part.rule.name.endswith("mixer.in_proj.weight"):
            # Four Mamba layers, of which the second and the fourth feed attention.
            assert part.count == 2
            assert part.form.name in ("bf16", "fp8")


def test_a_tally_follows_the_layers_that_stay() -> None:
    """Dropping a layer in front of attention can unshield one Mamba layer and shield another."""
    spec = tiny("MEM*MM*")
    whole, cut = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 4, 5, 6])
    both = tally(spec, precision_of(spec, "nvfp4"), [whole, cut])
    for place, kept in enumerate((whole, cut)):
        left = spec.resized({}, tuple(kept))
        alone = weight_bytes(left, tally_of(left, precision_of(left, "nvfp4")), left.sizes)
        assert weight_bytes(spec, both.at(np.array(place)), spec.sizes) == alone


def test_every_candidate_counts_as_the_model_that_it_is() -> None:
    spec = published(NANO)
    workload = workload_of(spec, 8192, weights="nvfp4")
    lattice = build_lattice(spec, workload)
    kept = tally(spec, precision_of(spec, "nvfp4"), lattice.depths)
    for points, _ in lattice.chunks(2**12):
        totals = points.spread(footprint(spec, workload, 0, points.sizes, tally=kept.at(points.depth)).total)
        for place in np.random.default_rng(0).choice(totals.size, 5, replace=False):
            where = np.unravel_index(place, points.shape)
            sizes = {spec.key(axis): int(points.spread(size)[where]) for axis, size in points.sizes.items()}
            one = spec.resized(sizes, lattice.depths[int(points.spread(points.depth)[where])])
            assert footprint(one, workload).total == totals[where]
        break


@pytest.mark.parametrize(
    ("name", "rows", "columns", "expected"),
    [
        ("bf16", 3, 5, 30),
        ("fp8", 128, 256, 128 * 256 + 8),
        # Two numbers a byte, a scale for each sixteen, a rest of sixteen counts as one.
        ("nvfp4", 2, 40, 2 * (20 + 3) + 8),
        ("int8", 4, 10, 4 * 12),
        # Eight numbers a word, and the matrix's shape in two numbers of eight bytes.
        ("int4", 4, 256, 4 * (128 + 2 * 2) + 16),
        ("fp8-dynamic", 4, 10, 4 * (10 + 2)),
        ("nvfp4a16", 2, 32, 2 * (16 + 2) + 4),
    ],
)
def test_a_matrix_takes_what_its_format_says(name: str, rows: int, columns: int, expected: int) -> None:
    assert FORMATS[name].matrix(rows, columns) == expected


def test_a_component_may_be_kept_in_another_format() -> None:
    spec = published("Llama-3.1-8B")
    plain, kept = (
        footprint(spec, workload_of(spec, 1, weights="fp8", keep=keep)).weights for keep in ({}, {"attention": "bf16"})
    )
    attention = spec.parameters().by_component["attention"]
    matrices = 4 * len(spec.layers)
    assert kept - plain == attention - 8 * matrices
    with pytest.raises(MinitronError, match="the parts are attention, embedding, lm_head, mlp, norm"):
        precision_of(spec, "fp8", {"moe": "bf16"})


def test_four_bits_take_little_more_than_a_quarter() -> None:
    spec = published("Llama-3.1-8B")
    whole, quarter = (footprint(spec, workload_of(spec, 1, weights=name)).weights for name in ("bf16", "int4"))
    components = spec.parameters().by_component
    matrices = components["attention"] + components["mlp"]
    count = 7 * len(spec.layers)
    assert quarter == whole - 2 * matrices + matrices * Fraction(4 * 128 + 16, 8 * 128) + 16 * count


def test_a_group_that_does_not_divide_a_width_gives_way_to_the_next() -> None:
    """SmolLM2's hidden size of 576 is nine times 64; its MLP, which 128 would divide, shares the group of its part."""
    spec = published("Llama-3.1-8B")
    spec = spec.resized({"hidden_size": 576, "intermediate_size": 1536})
    heads, kv, rows = 32 * 128, 8 * 128, 0
    shapes = [(heads, 576), (kv, 576), (kv, 576), (576, heads), (1536, 576), (1536, 576), (576, 1536)]
    for height, width in shapes:
        rows += height * (width // 2 + 2 * width // 64) + 16
    plain = 2 * (2 * spec.sizes["vocab"] * 576 + 576 * (2 * len(spec.layers) + 1))
    assert footprint(spec, workload_of(spec, 1, weights="int4")).weights == plain + len(spec.layers) * rows


def test_what_no_group_divides_stays_in_bf16() -> None:
    spec = published("Llama-3.1-8B").resized({"intermediate_size": 1000})
    down = 2 * 4096 * 1000
    others = (4096 * (2 * 4096 + 2 * 1024) + 2 * 4096 * 1000) * Fraction(4 * 128 + 16, 8 * 128) + 6 * 16
    rest = 2 * (2 * 4096 * spec.sizes["vocab"] + 4096 * (2 * len(spec.layers) + 1))
    assert footprint(spec, workload_of(spec, 1, weights="int4")).weights == rest + len(spec.layers) * (down + others)
    sizes = {"ffn": np.array([1000, 1024])}
    both = [published("Llama-3.1-8B").resized({"intermediate_size": int(size)}) for size in sizes["ffn"]]
    kept = tally_of(spec, precision_of(spec, "int4"))
    found = weight_bytes(spec, kept, {**spec.sizes, **sizes})[0]
    assert list(found) == [footprint(one, workload_of(one, 1, weights="int4")).weights for one in both]


@pytest.mark.parametrize(
    ("named", "published"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
    ],
)
def test_a_config_that_names_no_modules_means_the_published_mixture(named: dict[str, object], published: str) -> None:
    spec = planning_models.published(NANO)
    quantised = replace(spec, config={**spec.config, "quantization_config": named})
    asked = workload_of(quantised, 8)
    assert asked.weights == STORED
    found = [footprint(quantised, load).weights for load in (asked, replace(asked, weights=published))]
    assert found[0] == found[1] == CHECKPOINTS[f"{NANO}-{published.upper()}"]["bytes"]
    assert workload_of(quantised, 8, weights="fp8").weights == "fp8"


def test_what_a_format_is_for() -> None:
    computed = ("fp32", "bf16", "fp16")
    quantised = ("fp8", "fp8-dynamic", "nvfp4", "nvfp4a16", "int8", "int4")
    assert [name for name in formats_for("weights") if not FORMATS[name].gguf] == [*computed, *quantised]
    kept = [name for name in formats_for("kv") if not FORMATS[name].gguf]
    assert kept == [*computed, "fp8", "nvfp4", "int8"]
    assert formats_for("state") == (*computed, "fp8", "int8")
    assert formats_for("conv") == computed
    # In NVFP4 sixteen keys or values share a scale of a byte.
    assert {name: float(FORMATS[name].bits_with_scales) for name in kept} == {
        "fp32": 32,
        "bf16": 16,
        "fp16": 16,
        "fp8": 8,
        "nvfp4": 4.5,
        "int8": 8,
    }
    assert mildest_first() == ("bf16", "fp8", "fp8-dynamic", "int8", "nvfp4", "nvfp4a16", "int4")


def test_formats_as_configs_call_them() -> None:
    assert [named_in_config(name, quantised=False) for name in ("float32", "bfloat16", "float16", "nvfp4")] == [
        *("fp32", "bf16", "fp16"),
        None,
    ]
    called = {"fp8": "fp8", "fbgemm_fp8": "fp8", "nvfp4": "nvfp4", "mixed_precision": "nvfp4", "float32": None}
    assert {name: named_in_config(name, quantised=True) for name in called} == called


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bits": 0}, "needs bits"),
        ({"bits": 8, "group": -1}, "negative"),
        ({"bits": 8, "uses": ()}, "uses are some of"),
        ({"bits": 8, "uses": ("kvs",)}, "uses are some of"),
        ({"bits": 8, "uses": ("conv",)}, "fewer than 16 bits"),
        ({"bits": 8, "origin": "guessed"}, "origin is one of"),
        ({"bits": 4, "group": 64, "groups": (128, 64)}, "groups begin with"),
        ({"bits": 4, "numbers": "int4"}, "what is written has an error"),
        ({"bits": 4, "numbers": "int4", "relative_error": 0.01}, "both numbers and a method"),
    ],
)
def test_a_format_checks_itself(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Format("x", **wrong)


def test_what_is_kept_in_fewer_bits_of_a_part_are_its_linears() -> None:
    """A convolution is no linear, and no engine reads it quantised.  23 Mamba layers have 10,304 x 2,688 and
    2,688 x 4,096."""
    spec = published(NANO)
    fewer, whole = (footprint(spec, workload_of(spec, 1, keep={"ssm": form})).weights for form in ("fp8", "bf16"))
    assert whole - fewer == 23 * (10_304 * 2_688 - 8 + 2_688 * 4_096 - 8)
