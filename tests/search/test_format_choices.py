"""Which formats the parts of a model are tried in, against every assignment there is."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from planning_models import WORKLOAD as WIDE
from planning_models import tiny

from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS
from minitron.memory.gpus import find_gpu
from minitron.memory.precision import precision_of, tally_of, weight_bytes
from minitron.memory.questions import cautions, state_format
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import searched_scales
from minitron.search import sweep
from minitron.search.counting import Counter
from minitron.search.format_choices import KV, OUTSIDE, Formats, format_choices, share_lost, written_of
from minitron.search.lattice import Lattice, Points, parse_widths
from minitron.search.offered_formats import form_of, kv_formats, parts_of, require_runnable, runnable
from minitron.search.pareto import Front
from minitron.search.search import search

WORKLOAD = replace(WIDE, weights="bf16", kv="bf16")
WRITTEN = [form.name for form in FORMATS.values() if form.written]


def hybrid() -> ModelSpec:
    return tiny(hidden_size=64, intermediate_size=64, moe_intermediate_size=32)


def added(spec: ModelSpec, workload: Workload, formats: Formats) -> int:
    return int(footprint(spec, formats.on(workload)).total) - int(footprint(spec, workload).total)


def cost(spec: ModelSpec, formats: Formats) -> float:
    counts = spec.parameters()
    used = counts.active_by_component | {"lm_head": OUTSIDE["lm_head"] * counts.active}
    used |= {"embedding": OUTSIDE["embedding"] * counts.active, KV: used["attention"]}
    return float(sum(used.get(part, 0) * form_of(form).relative_error for part, form in formats.of.items()))


@pytest.mark.parametrize("name", WRITTEN)
def test_the_errors_of_formats_are_those_of_normally_distributed_numbers(name: str) -> None:
    weight = torch.randn(512, 768, generator=torch.Generator().manual_seed(3))
    (scales,) = searched_scales(FORMATS[name], [weight])
    found = off_grid(on_grid(FORMATS[name], weight, scales), scales)
    error = float((found - weight).square().mean() / weight.square().mean())
    assert FORMATS[name].relative_error == pytest.approx(error, rel=0.06)


def test_fewer_bits_lose_more() -> None:
    names = ("bf16", "q8_0", "int8", "fp8", "nvfp4", "int4", "iq3_xxs", "iq2_xxs")
    lost = [float(share_lost(form_of(name).relative_error)) for name in names]
    assert lost[0] == 0
    assert sorted(lost) == lost
    assert lost[-1] < 1


@pytest.mark.parametrize("names", [("bf16", "int8", "int4"), ("bf16", "fp8", "nvfp4"), ("int8", "int4")])
def test_no_assignment_beats_those_that_are_tried(names: tuple[str, ...]) -> None:
    spec = hybrid()
    workload = WORKLOAD
    tried = format_choices(spec, workload, names)
    known = [(added(spec, workload, one), cost(spec, one)) for one in tried]
    parts = parts_of(spec, workload)
    assert {"attention", "ssm", "mlp", "moe_routed", "lm_head"} <= set(parts)
    for chosen in product(names, repeat=len(parts)):
        forms = dict(zip(parts, chosen, strict=True))
        main = written_of(forms, spec.parameters().by_component)
        other = Formats("bf16" if main is None else main[0], tuple(forms.items()))
        size, lost = added(spec, workload, other), cost(spec, other)
        assert any(bytes_ <= size and own <= lost * (1 + 1e-9) + 1e-9 for bytes_, own in known)
    sizes = [bytes_ for bytes_, _ in known]
    assert sizes == sorted(sizes, reverse=True)


def test_formats_of_one_checkpoint_are_those_that_one_config_can_name() -> None:
    for one in format_choices(hybrid(), WORKLOAD, ["bf16", "fp8", "nvfp4", "int8", "int4"]):
        methods = {FORMATS[form].method for form in one.of.values() if FORMATS[form].quantised}
        assert len(methods) <= 1


def test_keys_and_values_vary_too() -> None:
    spec, workload = hybrid(), replace(WORKLOAD, context=64)
    found = format_choices(spec, workload, [workload.weights], ["bf16", "fp8"])
    assert {one.kv for one in found} == {"bf16", "fp8"}
    assert {one.on(workload).kv for one in found} == {"bf16", "fp8"}


def test_a_single_choice_keeps_everything_as_it_is() -> None:
    spec = hybrid()
    (only,) = format_choices(spec, WORKLOAD, [WORKLOAD.weights])
    assert only.on(WORKLOAD) == WORKLOAD
    assert not only.quantised
    assert written_of(only.of, spec.parameters().by_component) is None


@pytest.mark.parametrize(
    ("gpu", "has", "lacks"),
    [
        ("A10G", {"int8", "int4", "nvfp4a16"}, {"fp8", "nvfp4"}),
        ("L4", {"int8", "int4", "fp8", "fp8-dynamic"}, {"nvfp4"}),
        ("B200", {"int8", "int4", "fp8", "nvfp4"}, set()),
        ("V100-16GB", {"bf16"}, {"int8", "int4", "fp8", "nvfp4"}),
    ],
)
def test_what_a_gpu_does_not_run_is_not_offered(gpu: str, has: set[str], lacks: set[str]) -> None:
    found = set(runnable(workload_of(hybrid(), 64, engine=Engine("vllm")), find_gpu(gpu)))
    assert has <= found
    assert not lacks & found


def test_keys_and_values_are_offered_as_the_engine_keeps_them() -> None:
    workload = workload_of(hybrid(), 64, engine=Engine("vllm"))
    offered = {gpu: kv_formats(workload, find_gpu(gpu)) for gpu in ("V100-16GB", "L4", "B200")}
    assert offered["L4"][:2] == ["bf16", "fp8"]
    for gpu, forms in offered.items():
        assert forms[0] == workload.kv
        told = [cautions(hybrid(), replace(workload, kv=form), find_gpu(gpu)) for form in forms]
        assert not any("no kernels" in sentence for sentences in told for sentence in sentences)


@pytest.mark.parametrize("name", ["int3", "q4_k_m", "int4 ", ""])
def test_a_format_that_is_not_written(name: str) -> None:
    with pytest.raises(MinitronError, match=r"names .*, which is no format that Minitron writes; choose of fp32, bf16"):
        require_runnable(hybrid(), WORKLOAD, [name], None)


def lattice_of(spec: ModelSpec, names: list[str], **widths: str) -> Lattice:
    whole = tuple(range(len(spec.layers)))
    found = Lattice(spec, (whole, whole[:-1]), parse_widths(spec, widths))
    return replace(found, formats=format_choices(spec, WORKLOAD, names))


def test_the_search_finds_what_a_loop_finds_in_any_format() -> None:
    spec = hybrid()
    lattice = lattice_of(spec, ["bf16", "int8", "int4"], intermediate_size="64,32,16", hidden_size="64,56,32")
    whole = int(footprint(spec, WORKLOAD).total)
    budget = Budget(usable=whole // 2)
    expected = []
    for formats in lattice.formats:
        for kept in lattice.depths:
            for ffn, hidden in product((64, 32, 16), (64, 56, 32)):
                left = spec.resized({"intermediate_size": ffn, "hidden_size": hidden}, kept)
                total = int(footprint(left, formats.on(WORKLOAD)).total)
                counts = left.parameters()
                lost = cost(left, formats)
                cut = 1 - counts.total / spec.parameters().total
                loss = cut**1.5 + 1.4**1.5 * lost / counts.active
                if total <= budget.available:
                    expected.append((spec.parameters().total * (1 - loss ** (2 / 3)), total))
    best = max(score for score, _ in expected)
    found = search(lattice, WORKLOAD, budget, top=5)
    assert found.best.score == pytest.approx(best)
    assert (best, found.best.footprint.total) in [(pytest.approx(score), total) for score, total in expected]
    left = spec.resized(found.best.sizes, found.best.kept)
    assert int(footprint(left, found.served(left)).total) == found.best.footprint.total
    assert found.best.formats is not None
    assert found.best.formats.quantised
    document = found.to_json()["candidates"][0]
    assert document["formats"] == found.best.formats.of


def test_a_lattice_that_is_too_large_is_searched_around_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = hybrid()
    lattice = lattice_of(
        spec,
        ["bf16", "int8", "int4"],
        intermediate_size=",".join(map(str, range(64, 15, -2))),
        moe_shared_expert_intermediate_size=",".join(map(str, range(40, 15, -2))),
        moe_intermediate_size=",".join(map(str, range(32, 7, -4))),
    )
    budget = Budget(usable=int(footprint(spec, WORKLOAD).total) * 3 // 5)
    whole = search(lattice, WORKLOAD, budget)
    monkeypatch.setattr(sweep, "POINTS", 4000)
    few = search(lattice, WORKLOAD, budget)
    assert few.searched < whole.searched / 4
    assert few.best.score >= 0.995 * whole.best.score
    assert few.best.fits


def test_architectures_of_a_thinned_lattice_are_of_the_lattice() -> None:
    spec = hybrid()
    lattice = lattice_of(spec, ["bf16", "int4"], intermediate_size=",".join(map(str, range(64, 15, -2))))
    counter = Counter(WORKLOAD, Budget(10**9, workspace=0))
    thinned = lattice.thinned(
        10, lambda points: counter.fewest_bytes(lattice, replace(points, form=np.full(points.shape, -1)))
    )
    assert thinned.points < lattice.points
    assert set(thinned.widths["intermediate_size"]) < set(lattice.widths["intermediate_size"])
    assert {64, 16} <= set(thinned.widths["intermediate_size"])
    point = next(thinned.chunks())[0]
    near = lattice.around(thinned, point.select(np.array([0])))
    assert set(near.widths["intermediate_size"]) < set(lattice.widths["intermediate_size"])
    assert 64 in near.widths["intermediate_size"]


def test_what_fills_the_blocks_of_a_type_is_searched_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 768 and smaller sizes of experts only those of whole blocks of 256 are kept in iq2_xxs, others in iq4_nl."""
    spec = tiny("MEME*ME", hidden_size=512, moe_intermediate_size=768, n_routed_experts=16)
    workload = workload_of(spec, 64, engine=Engine("llama.cpp"))
    names = ["q4_k", "iq3_xxs", "iq2_xxs"]
    widths = {
        "moe_intermediate_size": ",".join(map(str, range(768, 255, -32))),
        "n_routed_experts": ",".join(map(str, range(16, 7, -1))),
        "moe_shared_expert_intermediate_size": "40,36,32,28,24,20",
    }
    lattice = Lattice(spec, (tuple(range(len(spec.layers))),), parse_widths(spec, widths))
    lattice = replace(lattice, formats=format_choices(spec, workload, names))
    budget = Budget(usable=int(footprint(spec, replace(workload, weights="iq3_xxs")).total) * 4 // 5, workspace=0)
    monkeypatch.setattr(sweep, "POINTS", 24 * 100)
    found = search(lattice, workload, budget)
    assert found.best.sizes["moe_intermediate_size"] % 256 == 0
    one_type = [
        search(replace(lattice, formats=format_choices(spec, workload, [name])), workload, budget) for name in names
    ]
    assert found.best.score >= 0.999 * max(one.best.score for one in one_type if one.candidates)


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_points_take_at_least_is_not_more_than_they_take(gpus: int) -> None:
    spec, workload = hybrid(), replace(WORKLOAD, tensor_parallel=gpus)
    lattice = lattice_of(spec, ["bf16", "int8", "int4"], intermediate_size="64,48,32", hidden_size="64,32")
    counter = Counter(workload, Budget(10**9, workspace=0))
    for points, allowed, totals in counter.blocks(lattice):
        flat = points.select(np.arange(allowed.size))
        least = counter.fewest_bytes(lattice, flat)
        assert (least[allowed.ravel()] <= totals.ravel()[allowed.ravel()]).all()
        # And not so little that it tells nothing.
        assert (least > 0.1 * totals.ravel()).all()


def test_types_of_ggml_are_chosen_for_llama_cpp() -> None:
    spec = tiny("ME*M", hidden_size=256, moe_intermediate_size=256, n_routed_experts=8)
    workload = workload_of(spec, 64, engine=Engine("llama.cpp"))
    names = runnable(workload, None)
    found = format_choices(spec, workload, names)
    assert {"bf16", "q8_0", "iq2_xxs"} <= {form for one in found for form in one.of.values()}
    for one in found[:: max(1, len(found) // 20)]:
        served = one.on(workload)
        assert FORMATS[served.weights].gguf
        assert served.keep == ({} if served.weights == workload.weights else dict(one.parts))
    smallest = found[-1].on(workload)
    assert footprint(spec, smallest).total < footprint(spec, replace(workload, weights="q4_k_m")).total
    line = serve_line("MODEL", spec, smallest, Budget(2**30))
    assert "--keep moe_routed=iq2_xxs" in line and "--data TEXT" in line
    with pytest.raises(MinitronError, match="--formats names 'int4', which is no type of ggml"):
        require_runnable(spec, workload, ["int4"], None)


def test_a_format_that_a_gpu_does_not_run_is_refused_with_those_that_it_does() -> None:
    spec = hybrid()
    require_runnable(spec, WORKLOAD, ["bf16", "int8", "fp8"], find_gpu("A10G"))
    with pytest.raises(MinitronError, match=r"V100-16GB does not run int8 \(compute capability 7.0, 7.5 is needed\)"):
        require_runnable(spec, WORKLOAD, ["bf16", "int8"], find_gpu("V100-16GB"))


def test_keys_and_values_alone_leave_the_weights_as_they_are() -> None:
    spec = hybrid()
    for weights in ("nvfp4", "bf16"):
        workload = replace(WORKLOAD, weights=weights, keep={"ssm": "bf16"} if weights == "nvfp4" else {})
        for one in format_choices(spec, workload, [], ["bf16", "fp8"]):
            served = one.on(workload)
            assert replace(served, kv=workload.kv) == workload
            assert one.to_json() == {"kv": served.kv}


def test_what_somebody_keeps_is_not_searched_and_is_told() -> None:
    spec = hybrid()
    workload = replace(WORKLOAD, keep={"attention": "bf16"})
    for one in format_choices(spec, workload, ["int8", "int4"]):
        assert "attention" not in one.of
        assert one.to_json()["attention"] == "bf16"
        form, keep = written_of(one.to_json(), spec.parameters().by_component) or ("", {})
        assert keep["attention"] == "bf16"
        planned = precision_of(spec, form, keep)
        assert weight_bytes(spec, tally_of(spec, planned), spec.sizes)[0] == footprint(spec, one.on(workload)).weights


def test_points_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = hybrid()
    lattice = lattice_of(spec, ["bf16", "int8", "int4"], intermediate_size=",".join(map(str, range(64, 15, -2))))
    monkeypatch.setattr(sweep, "POINTS", 24 * 20)
    seen: list[tuple[int, ...]] = []
    add = Front.add

    def noted(self: Front, points: Points, allowed: Any, memory: Any, worth: Any) -> None:
        flat = points.select(np.flatnonzero(allowed))
        seen.extend(zip(flat.depth.tolist(), flat.sizes["ffn"].tolist(), flat.form.tolist(), strict=True))  # type: ignore[union-attr]
        add(self, points, allowed, memory, worth)

    monkeypatch.setattr(Front, "add", noted)
    found = search(lattice, WORKLOAD, Budget(usable=int(footprint(spec, WORKLOAD).total) * 3 // 5))
    assert len(lattice.formats) > 24
    assert len(seen) == len(set(seen)) == found.searched
    assert found.feasible <= found.searched < lattice.points


def test_states_are_kept_in_fp16_where_the_engine_can() -> None:
    spec, dense = hybrid(), tiny("*-", hidden_size=64, intermediate_size=64)
    vllm, llama_cpp = replace(WIDE, engine=Engine("vllm")), workload_of(spec, 64, engine=Engine("llama.cpp"))
    assert state_format(spec, vllm) == state_format(spec, WIDE) == "fp16"
    assert state_format(spec, llama_cpp) == state_format(dense, vllm) == ""
    assert state_format(spec, replace(vllm, ssm_state="bf16")) == ""
    for one in format_choices(spec, WIDE, ["bf16", "int8"], state="fp16"):
        assert one.to_json()["state"] == "fp16" and "state" not in one.of
        served = one.on(WIDE)
        assert served.ssm_state == "fp16"
        assert 2 * footprint(spec, served).ssm_state == footprint(spec, WIDE).ssm_state > 0


def test_what_is_not_quantised_stays_in_the_numbers_of_the_model() -> None:
    spec = hybrid()
    found = format_choices(spec, WIDE, ["bf16", "int8"])
    assert {form for one in found for form in one.of.values()} == {"fp32", "int8"}
    whole = next(one for one in found if not one.quantised)
    assert footprint(spec, whole.on(WIDE)) == footprint(spec, WIDE)
    for one in found:
        if one.quantised:
            form, keep = written_of(one.to_json(), spec.parameters().by_component) or ("", {})
            planned = precision_of(spec, form, keep)
            assert weight_bytes(spec, tally_of(spec, planned), spec.sizes)[0] == footprint(spec, one.on(WIDE)).weights
