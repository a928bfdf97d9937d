"""The terms of a footprint: their sum, and that a pencil gets their bytes."""

import re
from math import prod

import pytest
from planning_models import LONG, published

from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.footprint_lines import ORIGINS, TITLES, FootprintLine, footprint_lines
from minitron.memory.gpus import find_gpu
from minitron.memory.workload import Engine, workload_of

CASES = [
    ("Nemotron-Nano-9B-v2", {}),
    ("Nemotron-Nano-9B-v2", {"engine": Engine("vllm", max_num_seqs=256), "lora_rank": 8}),
    ("Nemotron-3-Nano-30B-A3B", {"weights": "nvfp4", "kv": "fp8", "engine": Engine("vllm"), "tensor_parallel": 2}),
    ("Nemotron-3-Super-120B-A12B", {"weights": "nvfp4", "speculative_tokens": 2, "vision_encoder": 10**9}),
    ("Llama-3.1-8B", {"engine": Engine("vllm"), "kv": "nvfp4"}),
]
EXACT_PRODUCTS = ("kv_cache", "conv_state", "ssm_state", "prefix_states", "null_block", "lora")


def calculated(filled: str) -> float:
    """What a product of numbers comes to, as a reader would multiply it."""
    return prod(float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", filled))


@pytest.mark.parametrize(("model", "options"), CASES)
def test_terms_add_up_to_the_footprint(model: str, options: dict[str, object]) -> None:
    spec = published(model)
    workload = workload_of(spec, LONG, 3, **options)  # type: ignore[arg-type]
    budget = Budget(find_gpu("H200").usable, workspace=None)
    found = footprint_lines(spec, workload, budget)
    assert sum(term.bytes for term in found) == footprint(spec, workload, None).total
    for term in found:
        assert term.origin in ORIGINS
        assert term.title == TITLES[term.name]
        if term.name in EXACT_PRODUCTS:
            assert calculated(term.filled) == term.bytes


def test_every_line_has_a_title_and_a_formula() -> None:
    spec = published("Nemotron-Nano-9B-v2")
    assert set(footprint(spec, workload_of(spec, 1)).lines) | {"total"} == set(TITLES)


def test_origins_are_told_apart() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")

    def origins(**options: object) -> dict[str, str]:
        budget = Budget(find_gpu("H200").usable, workspace=None)
        found = footprint_lines(spec, workload_of(spec, LONG, **options), budget)  # type: ignore[arg-type]
        return {term.name: term.origin for term in found}

    assert origins()["weights"] == "exact"
    assert origins(weights="nvfp4")["weights"] == "published"
    assert origins(weights="int4")["weights"] == "exact"
    assert origins(vision_encoder=5)["vision_encoder"] == "given"
    assert origins(engine=Engine("vllm"))["cuda_graphs"] == "estimated"


def test_weights_say_how_many_bits() -> None:
    spec = published("Llama-3.1-8B")
    term = footprint_lines(spec, workload_of(spec, 1))[0]
    assert isinstance(term, FootprintLine)
    assert term.filled == "8,030,261,248 x 2 B"


@pytest.mark.parametrize("weights", ["nvfp4", "fp8", "int4"])
@pytest.mark.parametrize("model", ["Nemotron-3-Nano-30B-A3B", "Nemotron-3-Super-120B-A12B"])
def test_a_mixture_can_be_added_up_too(model: str, weights: str) -> None:
    spec = published(model)
    term = footprint_lines(spec, workload_of(spec, 1, weights=weights))[0]
    named = re.sub(r"\([^)]*\)", "", term.filled)
    assert sum(calculated(part) for part in named.split(" + ")) == term.bytes
    assert weights in term.filled


def test_the_mtp_block_can_be_added_up() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    for weights in ("bf16", "nvfp4", "fp8"):
        found = footprint_lines(spec, workload_of(spec, 1, weights=weights, speculative_tokens=1))
        term = next(term for term in found if term.name == "mtp_weights")
        named = re.sub(r"\([^)]*\)", "", term.filled)
        assert sum(calculated(part) for part in named.split(" + ")) == term.bytes
