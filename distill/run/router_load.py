"""Routers of a mixture of experts: which modules they are, and how evenly they spread tokens.

Shape letters: N tokens, K experts a token goes to, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.teacher.fp8 import ROUTERS
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Module's name -> [E] tokens that each of its experts got while the block ran; empty for a model without experts.

    Experts are the modules that transformers tells which of them each token goes to: [N, K] whole numbers beside the
    states [N, H].  Those of a family that does it otherwise are left out."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def see(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = [one for one in (*given, *named.values()) if isinstance(one, Tensor)]
            for chosen in (one for one in tensors if one.dtype == torch.long):
                counts = torch.bincount(chosen.flatten(), minlength=module.num_experts).cpu()
                found[name] = found.get(name, torch.zeros_like(counts)) + counts

        return see

    handles = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "num_experts", None), int) and hasattr(module, "down_proj"):
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def routers_of(model: nn.Module, spec: ModelSpec | None) -> Iterator[nn.Module]:
    """The modules that choose experts: by the family's table, or of a family without one by their names."""
    if spec is None:
        yield from (module for name, module in model.named_modules() if name.rpartition(".")[2] in ROUTERS)
        return
    # By their matrices and norms: a correction bias may stand in the module around router and experts.
    rules = (
        (layer, rule)
        for layer, kind in enumerate(spec.layers)
        for rule in spec.rules[kind]
        if rule.router and (rule.is_linear or rule.norm is not None)
    )
    yield from map(model.get_submodule, dict.fromkeys(module_name(rule, layer) for layer, rule in rules))


def load_of(counts: dict[str, Tensor]) -> dict[str, float]:
    """`busiest_expert`: the most tokens of any expert, in multiples of its layer's mean; `idle_experts`: how many got
    none.  Empty where there are no experts."""
    if not counts:
        return {}
    busiest = max(float(count.max() / count.double().mean().clamp_min(1e-9)) for count in counts.values())
    return {"busiest_expert": busiest, "idle_experts": float(sum(int((count == 0).sum()) for count in counts.values()))}


def told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """One sentence about `load_of` before and after training; None where there are no experts."""
    if "busiest_expert" not in after:
        return None
    return (
        f"Routers: the busiest expert gets {after['busiest_expert']:.2f} times the mean of its layer "
        f"({before['busiest_expert']:.2f} before training), {after['idle_experts']:.0f} experts get no "
        f"token ({before['idle_experts']:.0f} before)."
    )
