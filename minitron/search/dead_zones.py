"""Dead zones: shapes with bad results in published runs, as warnings with their source.

No candidate is left out for them: what was seen on one model need not hold on another.  Scores beside a rule are what
its source gives; MMLU before distillation is near 0.25 for a model that guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from minitron.model.axes import HIDDEN
from minitron.model.spec import ModelSpec
from minitron.search.candidate import Candidate, Zone
from minitron.search.depth import is_attention


@dataclass(frozen=True)
class Cut:
    """How much of a model a candidate keeps.  Shares are of the model's own; 1 where it has nothing of the kind."""

    hybrid: bool
    """Whether Mamba layers stand beside attention."""

    experts: bool
    """Whether it has routed experts."""

    layers: float
    attention: float
    """Layers of attention."""

    hidden: float
    mamba_head_dim: float

    mamba_inner: float
    """Mamba heads x their width."""

    parameters: float


@dataclass(frozen=True)
class Rule:
    """One dead zone."""

    name: str
    holds: Callable[[Cut], bool]

    sentence: str
    """With the fields of a Cut in braces."""

    source: str


_NANO_2: Final = "NVIDIA Nemotron Nano 2, arXiv:2508.14444"
_MODEL_OPTIMIZER: Final = "github.com/NVIDIA/Model-Optimizer, examples/pruning/"
_NANO_9B: Final = _MODEL_OPTIMIZER + "minitron/NVIDIA-Nemotron-Nano-9B-v2/README.md"
_NANO_30B: Final = _MODEL_OPTIMIZER + "minitron/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16/ABLATIONS.md"

# Thresholds are the published numbers; a share is compared with a hair of room, as 0.8 of a width is no round float.
_HAIR: Final = 1e-9

RULES: Final = (
    Rule(
        "mamba_head_dim",
        lambda cut: cut.mamba_head_dim <= 0.8 + _HAIR and cut.hidden == 1,
        "Mamba heads keep {mamba_head_dim:.0%} of their width while hidden stays whole: of ten 7B candidates cut from "
        "Nemotron-Nano-9B-v2 the two at 80 % and 70 % scored 0.42 and 0.20 (MMLU before distillation), the best 0.68.",
        _NANO_9B,
    ),
    Rule(
        "mamba_head_dim_at_any_hidden",
        lambda cut: cut.mamba_head_dim <= 48 / 64 + _HAIR,
        "Mamba heads keep {mamba_head_dim:.0%} of their width: in Nemotron-3-Nano-30B-A3B all 15 candidates at 75 % "
        "or less scored 0.24 to 0.26 (MMLU before distillation), the best of all 0.48.",
        _NANO_30B,
    ),
    Rule(
        "mamba_inner",
        lambda cut: cut.mamba_inner < 3072 / 4096 - _HAIR,
        "Mamba heads x width keep {mamba_inner:.0%}: in Nemotron-3-Nano-30B-A3B no candidate below 3072 of 4096 (75 %) "
        "scored above 0.31 (MMLU before distillation), the best of all 0.48.",
        _NANO_30B,
    ),
    Rule(
        "depth",
        lambda cut: cut.hybrid and cut.layers <= 52 / 62 + _HAIR,
        "{layers:.0%} of the layers stay: in Nemotron Nano 2's ablation over 6B tokens 52 of 62 layers (84 %) ended "
        "6.6 points below 56 of 62 (44.9 against 51.5).",
        _NANO_2,
    ),
    Rule(
        "depth_with_experts",
        lambda cut: cut.hybrid and cut.experts and cut.layers <= 46 / 52 + _HAIR,
        "{layers:.0%} of the layers stay: in Nemotron-3-Nano-30B-A3B 46 of 52 layers (88 %) never "
        "scored above 0.34, and 42 (81 %) scored at chance (MMLU before distillation), where 48 "
        "reached 0.47.",
        _NANO_30B,
    ),
    Rule(
        "attention",
        lambda cut: cut.hybrid and cut.attention < 4 / 6 - _HAIR,
        "{attention:.0%} of the attention layers stay: NVIDIA's cut of Nemotron Nano 2 stopped at 4 "
        "of 6 (67 %), because recall over a long context depends on them.",
        _NANO_2,
    ),
    Rule(
        "no_attention",
        lambda cut: cut.hybrid and cut.attention == 0,
        "No attention layer stays: transformers 5.23 cannot generate from such a hybrid, as its cache counts tokens in "
        "an attention layer; keep at least one.",
        "transformers 5.23, DynamicCache.get_seq_length",
    ),
    Rule(
        "parameters",
        lambda cut: cut.parameters < 0.5,
        "{parameters:.0%} of the parameters stay: to cut more than half, prune in steps: cut 30 %, "
        "distil, then cut again.",
        _MODEL_OPTIMIZER + "README.md",
    ),
)
"""Every dead zone."""


def dead_zones(spec: ModelSpec, candidate: Candidate) -> tuple[Zone, ...]:
    """The dead zones in which a candidate cut from the model of `spec` lies, in the order of RULES."""
    cut = cut_of(spec, candidate)
    return tuple(Zone(rule.name, rule.sentence.format(**vars(cut)), rule.source) for rule in RULES if rule.holds(cut))


def cut_of(spec: ModelSpec, candidate: Candidate) -> Cut:
    """How much a candidate keeps of the model of `spec`."""

    def share(axis: str) -> float:
        size = spec.sizes.get(axis)
        return candidate.sizes.get(spec.key(axis), size) / size if size else 1.0

    attention = sum(is_attention(spec, layer) for layer in range(len(spec.layers)))
    kept = sum(is_attention(spec, layer) for layer in candidate.kept)
    return Cut(
        hybrid=any(cache.state for kind in set(spec.layers) if (cache := spec.cache(kind))),
        experts=spec.num_experts > 0,
        layers=len(candidate.kept) / len(spec.layers),
        attention=kept / attention if attention else 1.0,
        hidden=share(HIDDEN),
        mamba_head_dim=share("mamba_head_dim"),
        mamba_inner=share("mamba_head") * share("mamba_head_dim"),
        parameters=candidate.parameters / spec.parameters().total,
    )
