"""Dead zones against the published candidates from which they were learned."""

import pytest
from planning_models import LONG, nano_12b, published

from minitron.memory.budget import Budget
from minitron.memory.workload import workload_of
from minitron.model.spec import ModelSpec
from minitron.search.candidate import Candidate
from minitron.search.dead_zones import RULES
from minitron.search.search import build_lattice, search
from minitron.units import GiB

HUGE = Budget(1000 * GiB)
NANO_7B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-MMMM-M-"


def cut(spec: ModelSpec, layers: int | None = None, pattern: str | None = None, **sizes: int) -> Candidate:
    workload = workload_of(spec, LONG)
    asked = {key: str(size) for key, size in sizes.items()} or {"hidden_size": str(spec.sizes["hidden"])}
    lattice = build_lattice(spec, workload, lattice=asked, layers=layers, pattern=pattern)
    return search(lattice, workload, HUGE).best


def warned(candidate: Candidate) -> list[str]:
    return [zone.name for zone in candidate.warnings]


# layers, hidden, Mamba heads, head width, ffn and the MMLU of the ten 7B candidates of Nemotron-Nano-9B-v2.
TEN = [
    (50, 4480, 128, 56, 15680, 0.2019, ["mamba_head_dim", "mamba_head_dim_at_any_hidden", "mamba_inner"]),
    (56, 4096, 96, 80, 14336, 0.4363, []),
    (48, 4352, 120, 80, 13824, 0.6789, []),
    (56, 4352, 112, 80, 10240, 0.5203, []),
    (54, 4480, 104, 80, 11264, 0.2615, []),
    (46, 4480, 128, 72, 14848, 0.6165, ["depth"]),
    (50, 4480, 112, 64, 15680, 0.4214, ["mamba_head_dim", "mamba_inner"]),
    (54, 4096, 112, 80, 13312, 0.5894, []),
    (56, 4352, 120, 72, 10752, 0.4688, []),
    (52, 4352, 120, 72, 12800, 0.5596, []),
]


@pytest.mark.parametrize(("layers", "hidden", "heads", "width", "ffn", "mmlu", "zones"), TEN)
def test_the_ten_candidates_of_nano_9b(
    layers: int, hidden: int, heads: int, width: int, ffn: int, mmlu: float, zones: list[str]
) -> None:
    candidate = cut(
        published("Nemotron-Nano-9B-v2"),
        layers=None if layers == 48 else layers,
        pattern=NANO_7B if layers == 48 else None,
        hidden_size=hidden,
        mamba_num_heads=heads,
        mamba_head_dim=width,
        intermediate_size=ffn,
    )
    if layers == 48:
        assert round(candidate.parameters / 1e9, 3) == 6.998
    assert warned(candidate) == zones
    if len(zones) > 1:
        assert mmlu < 0.43


# layers, hidden, heads, head width, experts, expert ffn, shared ffn: the best, and what never scored above 0.31.
@pytest.mark.parametrize(
    ("layers", "sizes", "zones"),
    [
        (52, (2304, 64, 64, 104, 1856, 3072), []),
        (48, (2560, 56, 56, 112, 1792, 3072), []),
        (52, (2560, 48, 64, 96, 1536, 3712), []),
        (50, (2560, 48, 56, 128, 1856, 3712), ["mamba_inner"]),
        (50, (2560, 64, 48, 128, 1856, 3712), ["mamba_head_dim_at_any_hidden"]),
        (50, (2560, 48, 48, 128, 1856, 3712), ["mamba_head_dim_at_any_hidden", "mamba_inner"]),
        (46, (2560, 64, 64, 128, 1856, 3712), ["depth_with_experts"]),
        (42, (2560, 64, 64, 128, 1856, 3712), ["depth", "depth_with_experts"]),
    ],
)
def test_candidates_of_nano_30b(layers: int, sizes: tuple[int, ...], zones: list[str]) -> None:
    keys = (
        *("hidden_size", "mamba_num_heads", "mamba_head_dim"),
        *("n_routed_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    )
    candidate = cut(published("Nemotron-3-Nano-30B-A3B"), layers, **dict(zip(keys, sizes, strict=True)))
    assert warned(candidate) == zones


def test_the_published_cut_of_nano_12b_has_none_and_a_shallower_one_has() -> None:
    spec = nano_12b()
    assert warned(cut(spec, 56, hidden_size=4480, intermediate_size=15680)) == []
    assert warned(cut(spec, 54)) == []
    shallow = cut(spec, 52)
    assert warned(shallow) == ["depth"]
    assert shallow.warnings[0].sentence.startswith("84% of the layers stay")
    letters = spec.letters.replace("*", "", 3)
    assert warned(cut(spec, pattern=letters)) == ["attention"]
    assert warned(cut(spec, pattern=spec.letters.replace("*", ""))) == ["attention", "no_attention"]


def test_beyond_half_one_goes_in_steps() -> None:
    llama = published("Llama-3.1-8B")
    workload = workload_of(llama, 4096)
    lattice = build_lattice(llama, workload, lattice={"intermediate_size": "3584"}, layers=16)
    assert warned(search(lattice, workload, HUGE).best) == ["parameters"]


def test_every_rule_names_its_source_and_the_model_itself_breaks_none() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.source.startswith(("NVIDIA", "github.com/NVIDIA", "transformers")) for rule in RULES)
    for name in ("Nemotron-Nano-12B-v2", "Nemotron-3-Super-120B-A12B", "Llama-3.1-8B"):
        spec = published(name)
        workload = workload_of(spec, 4096)
        assert search(build_lattice(spec, workload, layers=len(spec.layers)), workload, HUGE).parent.warnings == ()
