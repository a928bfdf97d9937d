"""Mixtures of formats: which tensors of a checkpoint are kept in which, and those that were published."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from minitron.memory.formats import FORMATS
from minitron.model.families import Rule

PROJECTIONS: Final = "projections"
"""Stands for every linear inside a block, however a family calls its tensors."""


@dataclass(frozen=True)
class Clause:
    """Some tensors and the format in which they are kept."""

    tensors: str
    """A regular expression that is searched in `component:name`, or PROJECTIONS for every linear inside a block."""

    form: str
    """A name in minitron.memory.formats.FORMATS."""

    share: Fraction = Fraction(1)
    """Of the layers that have the tensor, the first so many."""

    feeds_attention: bool = False
    """Only in layers that stand directly in front of an attention layer."""

    linears: bool = False
    """Only linears, not the convolutions beside them."""

    def names(self, rule: Rule) -> bool:
        """Whether it speaks of a rule's tensors."""
        if self.linears and not rule.is_linear:
            return False
        if self.tensors == PROJECTIONS:
            return rule.is_projection
        return re.search(self.tensors, f"{rule.component}:{rule.name}") is not None


@dataclass(frozen=True)
class Mixture:
    """How the tensors of a checkpoint are kept."""

    clauses: tuple[Clause, ...]
    origin: str
    """exact, published or estimated."""

    source: str
    """Where the mixture comes from, as a sentence."""

    attention_bytes: int = 0
    """Scales of keys and values, a layer of attention."""

    beside_bytes: int = 0
    """What is kept beside the tensors that the rules name, whatever is cut."""


_ROUTER: Final = (Clause(r"gate\.weight$", "fp32"), Clause(r"e_score_correction_bias$", "fp32"))
_NANO: Final = (*_ROUTER, Clause("^attention:", "bf16"), Clause(r"^ssm:.*_proj\.weight$", "bf16", feeds_attention=True))
_NANO_SOURCE: Final = (
    "the recipe of Nemotron-3-Nano-30B-A3B-{}: attention and the Mamba layer directly before each "
    "attention layer stay in bf16, the router in fp32"
)

# Super's formats were assigned layer by layer by a search of NVIDIA's (AutoQuantize).  Published are the 40,961
# matrices in NVFP4 (all routed experts and one shared expert's down_proj), the number of FP8 matrices (139) and the
# bytes; the shares of in_proj, out_proj, o_proj and fc1_latent_proj are one of several splits that give both.
_SUPER: Final = (
    Clause(r"e_score_correction_bias$", "fp32"),
    Clause("^moe_routed:", "nvfp4"),
    Clause(r"shared_experts\.down_proj", "nvfp4", Fraction(1, 40)),
    Clause("^moe_shared:", "fp8"),
    Clause(r"^ssm:.*\.in_proj\.weight$", "fp8", Fraction(30, 40)),
    Clause(r"^ssm:.*\.out_proj\.weight$", "fp8", Fraction(21, 40)),
    Clause(r"o_proj\.weight$", "fp8", Fraction(5, 8)),
    Clause("fc1_latent_proj", "fp8", Fraction(4, 40)),
)

PUBLISHED: Final[dict[tuple[str, str, str], Mixture]] = {
    ("nemotron_h", "dense", "fp8"): Mixture(
        (Clause("^attention:", "bf16"), Clause(PROJECTIONS, "fp8")),
        "published",
        "the recipe of Nemotron-Nano-9B-v2-FP8: Mamba and MLP projections in FP8, attention in bf16",
    ),
    ("nemotron_h", "moe", "nvfp4"): Mixture(
        (*_NANO, Clause(PROJECTIONS, "nvfp4")), "published", _NANO_SOURCE.format("NVFP4")
    ),
    ("nemotron_h", "moe", "fp8"): Mixture(
        (*_NANO, Clause(PROJECTIONS, "fp8")), "published", _NANO_SOURCE.format("FP8")
    ),
    ("nemotron_h", "latent", "nvfp4"): Mixture(
        _SUPER,
        "published",
        "the recipe of Nemotron-3-Super-120B-A12B-NVFP4: routed experts in NVFP4, 139 other matrices in FP8 (how those "
        "spread over Mamba, attention and latent projections is inferred from the bytes)",
        attention_bytes=8,
    ),
    ("nemotron_h", "latent", "fp8"): Mixture(
        (*_ROUTER, Clause("^attention:", "bf16"), Clause("^moe_latent_proj:", "bf16"), Clause(PROJECTIONS, "fp8")),
        "published",
        "the recipe of Nemotron-3-Super-120B-A12B-FP8: experts and Mamba projections in FP8, attention and latent "
        "projections in bf16, the router in fp32",
        attention_bytes=8,
    ),
}
"""(family, dense, moe or latent for experts in a latent space, format) -> the mixture published for such models."""


_LIKE: Final = {"fp8-dynamic": "fp8", "int8": "fp8", "nvfp4a16": "nvfp4", "int4": "nvfp4"}
"""A format in which nothing was published -> the one of as many bits whose mixture it takes."""


def published_for(family: str, sort: str, weights: str) -> Mixture | None:
    """The mixture published for such models, or that of a format of as many bits with this one in its place."""
    found = PUBLISHED.get((family, sort, weights))
    other = PUBLISHED.get((family, sort, _LIKE.get(weights, "")))
    if found is not None or other is None:
        return found
    quantised = {clause.form for clause in other.clauses if FORMATS[clause.form].quantised}
    if len(quantised) > 1:
        return None  # a mixture of formats that only one method writes
    clauses = tuple(replace(one, form=weights) if one.form in quantised else one for one in other.clauses)
    told = f"{other.source}; with {weights} in the place of {_LIKE[weights]}"
    return Mixture(clauses, FORMATS[weights].origin, told, other.attention_bytes)
