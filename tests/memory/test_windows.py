"""Sliding windows, against what transformers and vLLM keep of them."""

import json
from pathlib import Path

import pytest

from cli.app import run
from minitron.memory.caches import kept
from minitron.memory.footprint import footprint
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec, spec_of
from minitron.units import GiB

FACTS = json.loads((Path(__file__).parents[1] / "reference" / "families_facts.json").read_text())
MISTRAL_7B = FACTS["Mistral-7B-v0.1"]["config"] | {"model_type": "mistral", "max_position_embeddings": 32768}
PAGE = 16 * 2 * 8 * 128 * 2
"""Bytes of 16 tokens' keys and values in bf16: 8 heads of 128."""


def mistral() -> ModelSpec:
    return spec_of(MISTRAL_7B)


@pytest.mark.parametrize("context", [4096, 32_768, 2**20])
def test_mistral_keeps_half_a_gib_however_long_the_text(context: int) -> None:
    spec = mistral()
    found = kept(spec, workload_of(spec, context), spec.sizes, spec.kind_counts())
    assert found.kv_bytes == 0.5 * GiB


@pytest.mark.parametrize(
    ("context", "at_once", "tokens"),
    [
        (32_768, 2048, 4095 + 2 * 2048),
        (32_768, 8192, 4095 + 2 * 8192),
        (5000, 2048, 5000),
        (1000, 2048, 1000),
    ],
)
def test_vllm_keeps_the_window_and_what_steps_may_add(context: int, at_once: int, tokens: int) -> None:
    """SlidingWindowSpec: min(window - 1 + max_in_flight_tokens, L) tokens in blocks of 16, and a block more; two steps
    of max_num_batched_tokens are in flight where scheduling is asynchronous, as it is by default on a GPU."""
    spec = mistral()
    engine = Engine("vllm", prefix_caching=False, cuda_graphs=False, max_num_batched_tokens=at_once)
    lines = footprint(spec, workload_of(spec, context, engine=engine)).lines
    pages = 32 * (-(-tokens // 16) + 1)
    assert lines["kv_cache"] + lines["block_rounding"] == pages * PAGE


def test_solving_for_the_context_does_not_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MISTRAL_7B))
    assert run(["plan", str(path), "--gpu", "L4", "--solve", "context", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["value"] is None
    assert told["total_bytes"] < told["available_bytes"]
    assert run(["plan", str(path), "--gpu", "L4", "--solve", "context"]) == 0
    assert "Memory sets no limit to the context length" in capsys.readouterr().out
    # Without the window it stops: 131,072 bytes a token.
    path.write_text(json.dumps(MISTRAL_7B | {"sliding_window": None}))
    assert run(["plan", str(path), "--gpu", "L4", "--solve", "context", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["spare_bytes"] < 131_072
