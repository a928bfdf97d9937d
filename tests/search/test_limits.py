"""Limits beside memory: against a loop that resizes the config of every architecture and counts it alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_models import AMPLE, WORKLOAD, nano_12b, published, random_scores, tiny

from cli.app import run
from importance.search.sieves import sieve
from importance.search.trial import Trial, Trials
from minitron.cut.plan import Plan, make_plan
from minitron.errors import MinitronError, NothingFits
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.limits import Limits
from minitron.memory.loads import load_of
from minitron.memory.roofline import estimate
from minitron.memory.workload import Workload, workload_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.candidate import Candidate
from minitron.search.depth import depths
from minitron.search.lattice import Lattice, LatticeOptions, parse_widths
from minitron.search.search import build_lattice, fitting, search
from minitron.units import parse_parameters, parse_seconds
from pipeline.planning import Planning

GPU = find_gpu("H100-80GB-SXM")
AXES = {"hidden_size": "32,28,24", "n_routed_experts": "3,4,6", "moe_intermediate_size": "16,20,24", "head_dim": "4,8"}


def lattice_of(spec: ModelSpec) -> Lattice:
    return Lattice(spec, depths(spec, WORKLOAD, 5, keep_attention=0), parse_widths(spec, AXES))


def counted(spec: ModelSpec, workload: Workload, candidate: Candidate, prompt: int) -> dict[str, float]:
    """Each alone, by its own config."""
    model = spec.resized(candidate.sizes, candidate.kept)
    output = workload.context - prompt
    speed = estimate(load_of(model, workload), GPU, prompt=prompt, output=output, concurrency=workload.batch)
    return {
        "memory": footprint(model, workload, 0).total,
        "parameters": model.parameters().total,
        "active_parameters": model.parameters().active,
        "throughput": speed.output_tokens_per_second,
        "latency": workload.batch * output / speed.output_tokens_per_second,
    }


def every(spec: ModelSpec, lattice: Lattice, prompt: int = 40) -> Iterator[tuple[Candidate, dict[str, float]]]:
    for candidate in search(lattice, WORKLOAD, AMPLE, top=lattice.points).candidates:
        yield candidate, counted(spec, WORKLOAD, candidate, prompt)


def architecture(candidate: Candidate) -> Any:
    return candidate.kept, tuple(candidate.sizes.items())


def keeps(values: Mapping[str, float], limits: Mapping[str, float], name: str) -> bool:
    # A hair of room: one and many are summed in another order.
    slack = 1e-9 * limits[name]
    least = name == "throughput"
    return values[name] >= limits[name] - slack if least else values[name] <= limits[name] + slack


@pytest.mark.parametrize("names", [("parameters",), ("active_parameters", "latency"), ("throughput", "parameters")])
def test_what_keeps_all_limits_is_what_a_loop_finds(names: tuple[str, ...]) -> None:
    spec = tiny()
    lattice = lattice_of(spec)
    alone = list(every(spec, lattice))
    # Between two that occur, so that no candidate lies on a limit.
    limits = {}
    for name in ("memory", *names):
        found = np.unique([values[name] for _, values in alone])
        limits[name] = float(found[len(found) // 2 - 1 : len(found) // 2 + 1].mean())
    others = Limits(**{name: limits[name] for name in names}, prompt=40)  # type: ignore[arg-type]
    budget = Budget(int(limits["memory"]), gpu=GPU, limits=others)
    wanted = {architecture(c) for c, values in alone if all(keeps(values, limits, name) for name in limits)}
    result = search(lattice, WORKLOAD, budget, top=lattice.points)
    assert 0 < len(wanted) < len(alone)
    assert {architecture(one) for one in result.candidates} == wanted
    assert result.feasible == sum(int(fits.sum()) for _, fits in fitting(lattice, WORKLOAD, budget)) == len(wanted)
    for one in result.candidates[:5]:
        own = counted(spec, WORKLOAD, one, 40)
        assert one.fits
        assert one.measures == pytest.approx({name: own[name] for name in limits}, rel=1e-9)
    # Whatever is shown beyond the budget keeps the other limits.
    assert all(keeps(one.measures, limits, name) for one in result.front for name in names)
    assert [held.name for held in result.limits] == list(result.best.measures)
    for held in result.limits:
        rest = [name for name in limits if name != held.name]
        only = [
            c
            for c, values in alone
            if not keeps(values, limits, held.name) and all(keeps(values, limits, name) for name in rest)
        ]
        assert held.excluded == len(only)
        assert held.binds == any(one.parameters > result.best.parameters for one in only)


def test_nothing_that_keeps_all_says_which_is_broken_and_by_how_much() -> None:
    spec = tiny()
    lattice = lattice_of(spec)
    fewest = min(one.parameters for one, _ in every(spec, lattice))
    assert search(lattice, WORKLOAD, Budget(2**30, limits=Limits(parameters=fewest))).best.parameters == fewest
    with pytest.raises(NothingFits) as caught:
        search(lattice, WORKLOAD, Budget(2**30, limits=Limits(parameters=fewest - 100)))
    told = f"has {fewest:,} parameters, 100 more than --params allows"
    assert str(caught.value).startswith("nothing keeps all limits: the nearest of ") and told in str(caught.value)
    with pytest.raises(NothingFits, match=r"needs .* more than --gpu or --budget allows, and has .* than --params"):
        search(lattice, WORKLOAD, Budget(1000, limits=Limits(parameters=100)))
    with pytest.raises(NothingFits, match=r"writes .* tokens/s fewer than --min-throughput allows"):
        search(lattice, WORKLOAD, Budget(2**30, gpu=GPU, limits=Limits(throughput=1e9, prompt=40)))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"max_latency": 1.0}, "--max-latency limit the speed on a GPU, and none is named"),
        ({"min_throughput": 1.0, "budget": 2**30, "context": 64}, "--min-throughput limit the speed on a GPU"),
        ({"gpu": "22GiB", "min_throughput": 1.0, "context": 64}, "only its memory is known"),
        ({"params": 0}, "--params 0 allows nothing"),
        ({}, "neither --gpu nor --budget is given"),
    ],
)
def test_limits_that_cannot_be(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        Planning(**asked).search(nano_12b())


def test_a_limit_of_parameters_alone_is_held_against_the_memory_of_the_model() -> None:
    spec = nano_12b()
    found = Planning(params=9_000_000_000, context=8192).search(spec)
    assert found.best.parameters <= 9_000_000_000
    assert found.budget.available == found.parent.footprint.total == footprint(spec, workload_of(spec, 8192), 0).total
    assert [(held.name, held.binds) for held in found.limits] == [("memory", False), ("parameters", True)]
    # NVIDIA's own cut has 8.888 B.
    assert found.best.parameters > 8_888_227_328


def test_numbers_as_they_are_typed() -> None:
    assert [parse_parameters(text) for text in ("7B", "350M", "1,000", "1.5b")] == [
        *(7_000_000_000, 350_000_000, 1000, 1_500_000_000)
    ]
    assert [parse_seconds(text) for text in ("30s", "500ms", "2", "1.5min")] == [30.0, 0.5, 2.0, 90.0]
    for wrong in ("7GB", "seven"):
        with pytest.raises(MinitronError, match="is not a number of parameters; write it like 7B or 350M"):
            parse_parameters(wrong)


def test_the_report_and_the_command_tell_what_binds(
    tiny_hybrid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_spec(tiny_hybrid).parameters()
    asked = ["--params", str(int(whole.total * 0.8)), "--context", "64", "-o", str(tmp_path / "report")]
    assert run(["plan", str(tiny_hybrid), *asked]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Limit: memory: " in told and told.count("this limit binds") == 1
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    names = {limit["name"]: limit for limit in document["limits"]}
    assert names["parameters"]["most"] == int(whole.total * 0.8) >= names["parameters"]["chosen"]
    assert names["parameters"]["parent"] == whole.total and names["parameters"]["binds"]
    assert "parameters: " in document["summary"] and "this limit binds" in document["summary"]
    assert "this limit binds" in (tmp_path / "report" / "report.html").read_text()
    assert "this limit binds" in (tmp_path / "report" / "report.md").read_text()


def test_prune_keeps_limits(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    whole = read_spec(tiny_hybrid).parameters()
    most, out = int(whole.active * 0.85), tmp_path / "small"
    scoring = ["--samples", "2", "--sequence-length", "32", "--layer-samples", "2", "--dtype", "fp32"]
    asked = ["prune", str(tiny_hybrid), "--data", str(short_text), "--context", "32", "-o", str(out), *scoring]
    assert run([*asked, "--active-params", str(most)]) == 0
    small = read_spec(out)
    Checkpoint(out).check(small)
    assert small.parameters().active <= most < whole.active
    assert run([*asked, "--params", "100", "--plan", "plan.json"]) == 2


class Counting(Trials):
    """What an architecture loses is the share of its numbers that went."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.objective, self.blocks = spec, "kl", np.zeros((2, 8), dtype=np.int64)

    def run(self, plan: Plan, formats: Any = None) -> Trial:
        loss = 1 - plan.parameters / self.spec.parameters().total
        return Trial(loss, loss, 1.0, 1.0, 0.0)


def test_the_measured_search_keeps_limits() -> None:
    spec = tiny()
    scores, lattice = random_scores(spec), lattice_of(spec)
    most = int(spec.parameters().active * 0.8)
    budget = Budget(2**30, limits=Limits(active_parameters=most))
    found = sieve(
        Counting(spec), lattice, WORKLOAD, budget, scores, plan=lambda sizes, kept, *_: make_plan(spec, sizes, kept)
    )
    assert len(found.verdicts) > 20
    for verdict in found.verdicts:
        model = spec.resized(verdict.candidate.sizes, verdict.candidate.kept)
        assert model.parameters().active <= most
    assert [held.name for held in found.result.limits] == ["memory", "active_parameters"]
    assert found.result.limits[1].binds


def test_speed_is_counted_for_millions_in_seconds() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    workload = workload_of(spec, 33792, 16)
    lattice = build_lattice(spec, workload, options=LatticeOptions(leave=["head_dim", "ssm_state"]))
    limits = Limits(throughput=1000.0, prompt=32768)
    found = search(lattice, workload, Budget(GPU.usable, gpu=GPU, limits=limits))
    assert found.best.measures == pytest.approx(
        {
            "memory": found.best.footprint.total,
            "throughput": estimate(
                load_of(spec.resized(found.best.sizes, found.best.kept), workload),
                GPU,
                prompt=32768,
                output=1024,
                concurrency=16,
            ).output_tokens_per_second,
        }
    )
    assert found.best.measures["throughput"] >= 1000
    assert {held.name: held.binds for held in found.limits} == {"memory": False, "throughput": True}
