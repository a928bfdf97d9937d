"""The law of llama.cpp's memory against the log of llama.cpp b11739, which loaded these models on the CPU.

The numbers are those of benchmarks/llama_cpp_memory.py, in MiB with two digits as the log prints them."""

import shlex
from typing import Any

import pytest
from planning_models import published, tiny

from minitron import builtin
from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.caches import require_whole_blocks
from minitron.memory.footprint import engine_facts, footprint
from minitron.memory.footprint_lines import footprint_lines
from minitron.memory.formats import FORMATS, formats_for
from minitron.memory.questions import remedies
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec, read_spec, spec_of
from minitron.units import MiB

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def hybrid(letters: str) -> ModelSpec:
    """The built-in model without layers of other letters."""
    spec = read_spec(builtin.MODEL)
    return spec.resized({}, tuple(place for place, letter in enumerate(spec.letters) if letter in letters))


def served(spec: ModelSpec, context: int, batch: int = 1, step: int = 512, **more: Any) -> Workload:
    return workload_of(spec, context, batch, engine=Engine("llama.cpp", max_num_batched_tokens=step), **more)


# (model, context, slots, tokens of a step, keys and values) -> KV, RS and compute buffer in the log.
LOGS = [
    ("SmolLM2", 4096, 1, 512, "fp16", 90.00, 0.00, 18.64),
    ("SmolLM2", 1000, 3, 512, "fp16", 67.50, 0.00, 15.67),
    ("SmolLM2", 16_384, 1, 512, "fp16", 360.00, 0.00, 30.64),
    ("SmolLM2", 2048, 4, 512, "q8_0", 95.62, 0.00, 16.67),
    ("SmolLM2", 4096, 1, 256, "q4_0", 25.31, 0.00, 9.35),
    ("SmolLM2", 2048, 1, 1024, "fp32", 90.00, 0.00, 33.29),
    ("ME*", 16_384, 1, 512, "fp16", 8.00, 0.35, 24.31),
    ("ME*", 2048, 4, 512, "q8_0", 2.12, 1.40, 10.36),
    ("ME*", 4096, 1, 256, "q4_0", 0.56, 0.35, 6.16),
    ("ME*", 2048, 1, 1024, "fp32", 2.00, 0.35, 20.60),
]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: " ".join(map(str, log[:5])))
def test_buffers_are_those_of_the_log(log: tuple[Any, ...]) -> None:
    name, context, batch, step, kv, *said = log
    spec = spec_of(SMOLLM2) if name == "SmolLM2" else hybrid(name)
    workload = served(spec, context, batch, step, kv=kv)
    found = footprint(spec, workload, None)
    counted = [found.kv_cache + found.block_rounding, found.conv_state + found.ssm_state]
    assert [round(number / MiB, 2) for number in counted] == pytest.approx(said[:2], abs=0.006)
    assert found.workspace / MiB == pytest.approx(said[2], rel=0.025)
    facts = {fact.name: fact.value for fact in engine_facts(spec, workload, Budget(2**40))}
    assert facts["kv_buffer_bytes"] == counted[0] and facts.get("rs_buffer_bytes", 0) == counted[1]


def test_the_parts_of_a_hybrid_with_published_widths() -> None:
    """Nemotron-3-Nano-30B-A3B's widths: 83.52 MiB where experts are the largest part, 89.03 where four slots' states
    make Mamba the largest."""
    spec = published("Nemotron-3-Nano-30B-A3B").resized({}, (0, 1, 2, 5, 6, 7))
    assert spec.letters == "MEM*EM"
    assert footprint(spec, served(spec, 4096), None).workspace / MiB == pytest.approx(83.52, rel=0.015)
    assert footprint(spec, served(spec, 2048, 4, kv="q8_0"), None).workspace / MiB == pytest.approx(89.03, rel=0.015)


def test_every_line_is_its_formula() -> None:
    spec = hybrid("ME*")
    lines = {line.name: line for line in footprint_lines(spec, served(spec, 1000, 3), Budget(2**30, workspace=None))}
    for name in ("block_rounding", "workspace", "kv_cache", "conv_state"):
        formula = lines[name].filled.replace(",", "").replace(" B", "").replace(" x ", " * ")
        assert eval(formula, {}) == lines[name].bytes, name


def test_what_it_does_not_run_is_refused() -> None:
    spec = spec_of(SMOLLM2)
    assert served(spec, 64).weights == "gguf-bf16" and served(spec, 64).kv == "fp16"
    assert served(tiny("ME*"), 64).conv_state == served(tiny("ME*"), 64).ssm_state == "fp32"
    for options, told in (
        ({"weights": "fp8"}, "llama.cpp loads gguf files"),
        ({"kv": "fp8"}, "does not support a KV cache in fp8"),
        ({"ssm_state": "bf16"}, "does not keep Mamba states in bf16"),
        ({"conv_state": "bf16"}, "keeps convolution states in fp32"),
        ({"lora_rank": 8}, "without adapters"),
    ):
        with pytest.raises(MinitronError, match=told):
            served(spec, 64, **options)
    with pytest.raises(MinitronError, match="blocks of 32, which do not divide a head of 12"):
        require_whole_blocks(tiny("ME*"), served(tiny("ME*"), 64, kv="q8_0"))
    kept = {name for name in formats_for("kv") if FORMATS[name].gguf}
    assert kept == {name for name in ENGINES["llama.cpp"].kv or {} if FORMATS[name].quantised}


def test_the_line_makes_the_file_and_serves_it() -> None:
    spec = spec_of(SMOLLM2)
    line = serve_line("some/model", spec, served(spec, 1000, 3, kv="q8_0", weights="q4_k_m"), Budget(2**30))
    first, second = (shlex.split(part) for part in line.split(" && "))
    assert first == ["minitron", "export", "some/model", "--output", "model-q4_k_m.gguf", "--format", "q4_k_m"]
    # Of so few bits the file is made with text alone.
    fewer = serve_line("some/model", spec, served(spec, 1000, weights="iq2_xxs"), Budget(2**30)).split(" && ")[0]
    assert shlex.split(fewer)[-2:] == ["--data", "TEXT"]
    assert second[:3] == ["llama-server", "-m", "model-q4_k_m.gguf"]
    assert second[second.index("-c") + 1] == "3000" and second[second.index("--parallel") + 1] == "3"
    assert second[second.index("-ctk") + 1] == second[second.index("-ctv") + 1] == "q8_0"


def test_remedies_are_what_it_runs() -> None:
    spec = spec_of(SMOLLM2)
    found = remedies(spec, served(spec, 4096), Budget(300 * MiB))
    flags = [remedy.flags for remedy in found]
    assert "--weights q8_0" in flags and "--weights q4_k_m" in flags
    assert not [flag for flag in flags if "fp8" in flag or "nvfp4" in flag]
