"""The multi-token-prediction block of a Nemotron-H student, which transformers does not build: it drafts the token
after the next one from the state of a token and the embedding of the next.

    x_t = eh_proj [enorm(embedding of token t + 1); hnorm(h_t)],  h_t the state that the output layer reads
    its layers run over x, final_layernorm ends them, and the model's output layer gives the logits of token t + 2

(DeepSeek-AI 2024, DeepSeek-V3, arXiv 2412.19437, equations 21 to 23; the order of the two halves is that of vLLM's
nemotron_h_mtp.)  It knows tokens 0 .. t + 1, as the model's own state at t + 1 does: that is what it learns from.

Shape letters: B sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from distill.losses.slopes import chunks
from minitron.errors import MinitronError
from minitron.measure.quality import CHUNK_LOGITS, Answers, hidden_states
from minitron.model.backbone import backbone
from minitron.model.checkpoint import Checkpoint
from minitron.model.output_layer import output_layer
from minitron.model.spec import read_spec
from minitron.model.tensor_map import held

PREFIX: Final = "mtp."
"""What the names of its tensors begin with, in a checkpoint and in a run's."""


class Predictor(nn.Module):
    """The block of one student, in fp32."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        """Reads the block of the checkpoint `folder` of which `model` is the rest, to the same device.

        Raises MinitronError where there is none."""
        super().__init__()
        require_block(folder)
        config = copy.deepcopy(model.config)
        config.layer_types = list(config.mtp_layers_block_type)
        hidden = config.hidden_size
        with torch.device("meta"), no_init_weights():
            self.body = type(backbone(model))(config)
            norm = type(self.body.norm_f)
            self.enorm = norm(hidden, eps=config.layer_norm_epsilon)
            self.hnorm = norm(hidden, eps=config.layer_norm_epsilon)
            self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        # It embeds with the model's own.
        self.body.embeddings = nn.Identity()
        checkpoint, spec = Checkpoint(folder), read_spec(folder)
        state = {
            one.name: one.assemble(
                lambda expected: checkpoint.tensor(expected.name), dtype=torch.float32, device=model.device
            )
            for one in held(spec, mtp=True)
        }
        self.load_state_dict(state, assign=True)
        self.eval()

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """[B, T - 1, H] that the output layer reads, from the states of tokens 0 .. T - 2 and the embeddings of tokens
        1 .. T - 1, both [B, T - 1, H]."""
        both = torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1)
        out: Tensor = self.body(inputs_embeds=self.eh_proj(both), use_cache=False).last_hidden_state
        return out

    def stored(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) as the checkpoint `folder` has them: one tensor an expert."""
        state = self.state_dict()
        for one in held(read_spec(folder), mtp=True):
            for expected, tensor in one.split(state[one.name]):
                yield expected.name, tensor


@torch.no_grad()
def measure_drafts(
    student: PreTrainedModel, mtp: Predictor, blocks: NDArray[np.int64], teacher: Answers, batch_size: int
) -> dict[str, float]:
    """Over the sequences `blocks` [S, T]: `mtp_kl`, KL(teacher || draft) of the token after the next in nats, and
    `mtp_acceptance`, the share of drafts whose likeliest token is that of the student itself: what speculative decoding
    accepts when it is greedy."""
    head, sums, count = output_layer(student), np.zeros(2), 0
    for start in range(0, len(blocks), batch_size):
        ids = torch.from_numpy(blocks[start : start + batch_size])
        states = hidden_states(student, ids)
        embedded = student.get_input_embeddings()(ids[:, 1:].to(states.device))
        drafted = mtp(states[:, :-1], embedded).flatten(0, 1)
        own, theirs = states[:, 1:].flatten(0, 1), teacher.hidden_states(ids)[:, 1:].flatten(0, 1)
        for part in chunks(len(drafted), max(1, CHUNK_LOGITS // head.weight.shape[0])):
            logits, told = head(drafted[part]), teacher.head(theirs[part]).to(drafted.device)
            vocab = min(logits.shape[-1], told.shape[-1])
            log_q, log_p = logits[:, :vocab].log_softmax(-1), told[:, :vocab].log_softmax(-1)
            sums[0] += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
            sums[1] += int((logits.argmax(-1) == head(own[part]).argmax(-1)).sum())
        count += len(drafted)
    return {"mtp_kl": float(sums[0]) / count, "mtp_acceptance": float(sums[1]) / count}


def told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """One sentence about `measure_drafts` before and after training; None where there is no block that is trained."""
    if "mtp_kl" not in after:
        return None
    return (
        f"MTP drafts: greedy speculative decoding accepts {after['mtp_acceptance']:.1%} of them "
        f"({before['mtp_acceptance']:.1%} before training); their KL to the teacher is "
        f"{after['mtp_kl']:.4f} nats ({before['mtp_kl']:.4f} before)."
    )


def has_block(folder: Path) -> bool:
    """Whether a checkpoint holds a block that can be trained."""
    return any(name.startswith(f"{PREFIX}layers.0.eh_proj") for name in Checkpoint(folder).headers)


def require_block(folder: Path) -> None:
    """Raise MinitronError unless the checkpoint `folder` holds a block."""
    if not has_block(folder):
        raise MinitronError(f"{folder} holds no multi-token-prediction block; drop --mtp-weight.")
