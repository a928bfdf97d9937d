"""Cut a loaded model: from a plan and a transformers model to a smaller transformers model, without files.

The code that cuts is that of files (minitron.cut.cutter.Cutter), so a candidate that is measured in memory is the one
that is written later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from minitron.cut.cutter import Cutter
from minitron.cut.plan import Plan
from minitron.errors import MinitronError
from minitron.model.configs import config_of
from minitron.model.layerwise import compute_buffers
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import held


@torch.no_grad()
def cut_model(model: PreTrainedModel, spec: ModelSpec, plan: Plan) -> PreTrainedModel:
    """What `plan` leaves of `model`, whose spec is `spec`, in eval mode, on its device and in its dtypes.

    Tensors that the cut leaves whole are shared with `model`: train a copy of the result, not the result.  In the dtype
    that the checkpoint is stored in the tensors are bit for bit those that minitron.cut.prune.prune writes; in a wider
    one rescaled gains and projections keep the bits that a file rounds away.  A multi-token-prediction block, which
    transformers does not build, is left out.

    Raises MinitronError where the plan is another model's or names no indices, or `model` is not of this spec."""
    whole = dict(tensors(model, spec))
    cutter = Cutter(spec, plan, whole.__getitem__)
    pieces: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        for made in cutter.makes(name):
            pieces[made.name] = cutter.cut(made, tensor)
    with torch.device("meta"), no_init_weights():
        # Never the parent's config object: transformers lets modules write into it.
        result: PreTrainedModel = AutoModelForCausalLM.from_config(
            config_of(cutter.target),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=False,
        )
    state = _in_memory(cutter.target, pieces)
    missing, unexpected = result.load_state_dict(state, strict=False, assign=True)
    result.tie_weights()
    compute_buffers(result, model.device)
    left = [name for name, tensor in [*result.named_parameters(), *result.named_buffers()] if tensor.is_meta]
    if unexpected or left:
        raise RuntimeError(
            f"{spec.family.name}: a cut in memory left {[*unexpected, *left, *missing][:3]} without a home"
        )
    result.generation_config = model.generation_config
    result.requires_grad_(False)
    return result.eval()


def tensors(model: PreTrainedModel, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a loaded model as its checkpoint holds them: one tensor an expert, no prediction block.

    Raises MinitronError where `model` lacks a tensor of the spec or has it in another shape."""
    state = model.state_dict()
    for one in held(spec):
        found = state.get(one.name)
        if found is None or tuple(found.shape) != one.shape:
            raise MinitronError(
                f"the loaded model has {('no' if found is None else 'another shape of')} {one.name}; "
                "give the spec of the folder that it was loaded from."
            )
        for expected, tensor in one.split(found):
            yield expected.name, tensor


def _in_memory(target: ModelSpec, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names that transformers uses, experts stacked."""
    state: dict[str, Tensor] = {}
    for one in held(target):
        first = pieces[one.expected[0].name]
        state[one.name] = (
            first
            if len(one.expected) == 1
            else one.assemble(lambda expected: pieces[expected.name], dtype=first.dtype, device=first.device)
        )
    return state
