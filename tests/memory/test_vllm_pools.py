"""The pool of blocks against what vLLM's own functions made of the same configs, read off `make engine`."""

import json
from pathlib import Path

import pytest
from planning_models import LONG, published

from minitron.engines.vllm import blocks_in, pool, tokens_in
from minitron.memory.caches import kept
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec, spec_of
from minitron.units import GiB

FACTS = json.loads((Path(__file__).parents[1] / "reference" / "families_facts.json").read_text())
TYPES = {"Mistral-7B-v0.1": "mistral", "gpt-oss-120b": "gpt_oss", "Gemma-3-27B-text": "gemma3_text"}


def model(name: str) -> ModelSpec:
    return spec_of(FACTS[name]["config"] | {"model_type": TYPES[name]}) if name in TYPES else published(name)


@pytest.mark.parametrize(
    ("name", "block_size", "block", "groups", "sequence", "tokens"),
    [
        ("Nemotron-Nano-9B-v2", 1312, 21_495_808, 8, 121, 432_212),
        ("Nemotron-Nano-12B-v2", 1312, 32_243_712, 6, 115, 303_175),
        ("Nemotron-3-Nano-4B", 976, 15_990_784, 7, 153, 460_037),
        ("Nemotron-3-Nano-30B-A3B", 2096, 12_877_824, 5, 75, 1_165_666),
        ("Nemotron-3-Super-120B-A12B", 4160, 34_078_720, 6, 47, 702_769),
        ("Granite-4.0-H-Tiny", 784, 6_422_528, 10, 195, 898_683),
        ("Llama-3.1-8B", 16, 2_097_152, 1, 8192, 65_536),
        ("Qwen3-8B", 16, 2_359_296, 1, 8192, 58_240),
        ("Mistral-7B-v0.1", 16, 2_097_152, 1, 513, 1_046_531),
        ("gpt-oss-120b", 16, 589_824, 2, 8457, 225_706),
        ("Gemma-3-27B-text", 16, 1_310_720, 7, 10_118, 84_889),
    ],
)
def test_vllm_makes_the_same_pool(
    name: str, block_size: int, block: int, groups: int, sequence: int, tokens: int
) -> None:
    """vLLM 0.32 at 131,072 tokens with prefix caching, bf16, states in fp32, steps of 2,048 tokens, 8 GiB."""
    spec = model(name)
    engine = Engine("vllm", cuda_graphs=False, max_num_batched_tokens=2048)
    workload = workload_of(spec, LONG, weights="bf16", ssm_state="fp32", engine=engine)
    found = pool(workload, kept(spec, workload, spec.sizes, spec.kind_counts()))
    assert (found.block_size, found.block, found.groups) == (block_size, block, groups)
    assert found.per_sequence == sequence
    assert tokens_in(workload, found, blocks_in(found, 8 * GiB)) == tokens
