"""The memory law as data comes to what the law itself comes to, to the byte."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_models import nano_12b, published, tiny

from minitron.engines.table import ENGINES
from minitron.memory.budget import Budget
from minitron.memory.expressions import Expression, Writer, choice, made, value, variable
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.law import WORDS, law, read
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec, spec_of

REFERENCE = Path(__file__).parents[1] / "reference"
RELEASED = json.loads((REFERENCE / "released_configs.json").read_text(encoding="utf-8"))


def random_setting(document: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """An engine and a setting that it offers."""
    name = rng.choice(list(document["engines"]))
    engine = document["engines"][name]
    asked: dict[str, Any] = {word: rng.choice(engine["formats"][word]) for word in WORDS}
    asked["context"] = rng.choice([1, 100, 131_072, rng.randrange(1, 2**22)])
    asked["batch"] = rng.randrange(1, 200)
    asked["gpus"] = 1 if asked["weights"] in engine["one_gpu"] else rng.choice(document["split_gpus"])
    asked["step_tokens"] = rng.choice([512, 2048, 8192])
    return name, asked


def workload_at(engine: str, asked: dict[str, Any], **more: Any) -> Workload:
    """The same as a workload."""
    settings = Engine(engine, max_num_batched_tokens=asked["step_tokens"])
    formats = {word: asked[word] for word in WORDS}
    return Workload(asked["context"], asked["batch"], **formats, tensor_parallel=asked["gpus"], engine=settings, **more)


SPECS = {
    "Nemotron-Nano-12B-v2": nano_12b,
    "Nemotron-3-Super-120B-A12B": lambda: published("Nemotron-3-Super-120B-A12B"),
    "a tiny hybrid": lambda: tiny("MEM*-ME*-"),
    "Qwen3-Next in FP8": lambda: spec_of(RELEASED["Qwen3-Next-80B-A3B-FP8"]["config"]),
    "windows": lambda: spec_of(RELEASED["gemma-3-12b"]["config"]),
}


@pytest.mark.parametrize("name", SPECS)
def test_it_comes_to_the_footprint_at_random_settings(name: str) -> None:
    spec: ModelSpec = SPECS[name]()
    document = json.loads(json.dumps(law(spec, workload_of(spec, 8192))))
    rng = random.Random(name)
    for _ in range(25):
        engine, asked = random_setting(document, rng)
        expected = footprint(spec, workload_at(engine, asked), None).lines
        found = read(document, engine, asked)
        assert {line: count for line, count in found.items() if count} == {
            line: int(count) for line, count in expected.items() if count
        }, (engine, asked)


def test_what_else_is_asked_stays_in_it() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    engine = Engine("vllm", prefix_caching=False, cuda_graphs=False, max_num_seqs=9, block_size=32)
    more = {"speculative_tokens": 1, "lora_rank": 16, "vision_encoder": 12_345, "keep": {"attention": "fp32"}}
    workload = workload_of(spec, 4096, 3, engine=engine, **more)
    document = law(spec, workload, 1000)
    numbers = {"context": 4096, "batch": 3, "gpus": 1, "step_tokens": 2048}
    found = read(document, "vllm", numbers | document["engines"]["vllm"]["asked"])
    assert {name: count for name, count in found.items() if count} == {
        name: int(count) for name, count in footprint(spec, workload, 1000).lines.items() if count
    }


def test_engines_that_do_not_read_a_model_are_left_out() -> None:
    spec = spec_of(RELEASED["gemma-3-12b"]["config"])
    assert set(law(spec, workload_of(spec, 8192))["engines"]) == {"plain", "vllm"}
    assert set(law(nano_12b(), workload_of(nano_12b(), 8192))["engines"]) == set(ENGINES)


def told(document: dict[str, Any], asked: dict[str, Any], share: str) -> str:
    """The command of the law's own pieces."""
    own = document["engines"]["vllm"]
    pieces = [piece["texts"][str(asked[piece["by"]])] if "by" in piece else piece["text"] for piece in own["serve"]]
    numbers = {name: value(document["nodes"], place, asked) for name, place in own["numbers_index"].items()}
    text = " ".join(piece for piece in pieces if piece)
    for name, number in {**asked, **numbers, "share": share}.items():
        text = text.replace(f"%{name}%", str(number))
    return text


@pytest.mark.parametrize("name", ["Nemotron-Nano-12B-v2", "Qwen3-Next in FP8"])
def test_the_command_is_the_one_of_the_plan(name: str) -> None:
    spec: ModelSpec = SPECS[name]()
    document, gpu, rng = law(spec, workload_of(spec, 8192), model="M"), find_gpu("H100"), random.Random(1)
    budget = Budget(gpu.usable, 0.9, 2**30, None, gpu)
    for _ in range(20):
        engine, asked = random_setting(document, rng)
        if engine == "vllm":
            line = serve_line("M", spec, workload_at(engine, asked), budget)
            assert told(document, asked, line.split("--gpu-memory-utilization ")[1].split()[0]) == line


def test_operations_are_pythons_and_whole_numbers_of_any_size() -> None:
    a, b = variable("a"), variable("b")
    law_of = {
        "floor": a // b,
        "rest": a % b,
        "ceiling": -(-a // b),
        "most": np.maximum(np.int64(3), a),
        "least": np.minimum(b, 7),
        "where": np.where(a > b, a * 2**60, 1),
        "divisor": np.gcd(a, 12),
        "both": (a >= 2) & (b != 3) | (a == b),
        "array": np.where(np.array(True), 1, 2) + a - 1,
    }
    for left, right in ((7, 3), (-7, 3), (12, 4), (2, 5)):
        expected = {
            "floor": left // right,
            "rest": left % right,
            "ceiling": -(-left // right),
            "most": max(3, left),
            "least": min(right, 7),
            "where": left * 2**60 if left > right else 1,
            "divisor": int(np.gcd(left, 12)),
            "both": int((left >= 2 and right != 3) or left == right),
            "array": left,
        }
        writer = Writer()
        places = {name: writer.write(found) for name, found in law_of.items()}
        nodes = json.loads(json.dumps(writer.nodes))
        assert {name: value(nodes, place, {"a": left, "b": right}) for name, place in places.items()} == expected


def test_the_law_may_not_branch_on_what_is_asked() -> None:
    with pytest.raises(TypeError, match="neither true nor false"):
        _ = 1 if variable("a") > 0 else 2
    assert choice("kv", {"x": 1, "y": 1}) == 1
    assert isinstance(choice("kv", {"x": 1, "y": 2}), Expression)
    assert made("*", 0, variable("a")) == 0
