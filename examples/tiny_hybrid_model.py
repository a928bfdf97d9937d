"""The built-in model's architecture, tokenizer and optimizers, apart from the loop in `train_tiny_hybrid.py`.

Shape letters: E experts, F expert channels, H hidden.
"""

import math
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import NemotronHConfig, NemotronHForCausalLM

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
PATTERN = "MEM*-MEM*-ME"
MUON_LR, EMBEDDING_LR, ADAMW_LR = 0.02, 0.01, 0.004


def build_config() -> NemotronHConfig:
    """The architecture: every axis that can be pruned has room to shrink."""
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    return NemotronHConfig(
        vocab_size=2048, hidden_size=256, layers_block_type=[kinds[letter] for letter in PATTERN],
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, intermediate_size=768,
        mamba_num_heads=16, mamba_head_dim=32, n_groups=2, ssm_state_size=32, conv_kernel=4, chunk_size=32,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=160, n_shared_experts=1,
        moe_shared_expert_intermediate_size=256, routed_scaling_factor=2.0, norm_topk_prob=True,
        max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text can be encoded and comes back byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def initialise(model: NemotronHForCausalLM) -> None:
    """Start every layer as the identity and the embedding at the scale that a layer writes at.

    With transformers' small embedding (0.02) the first layer's output swamps the stream, and a briefly trained model
    then lives off layer 0 alone.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj", "down_proj.weight")):
            nn.init.zeros_(parameter)
        elif name.endswith("embeddings.weight"):
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith(
            ("in_proj.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj", "up_proj.weight")
        ):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))


class Optimizers:
    """Muon on the hidden matrices, AdamW on embeddings, head, router, convolutions, norms and per-head vectors.

    Muon wants 2-D matrices and transformers fuses experts to [E, F, H]: each expert is given to Muon as a view that
    shares memory with its slice, and the views' gradients are set before each step.
    """

    def __init__(self, model: NemotronHForCausalLM) -> None:
        self.fused: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        matrices: list[nn.Parameter] = []
        embeddings: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 3 and ".experts." in name:
                views = [nn.Parameter(parameter.data[expert]) for expert in range(parameter.shape[0])]
                self.fused.append((parameter, views))
                matrices += views
            elif parameter.ndim == 2 and "_proj" in name:
                matrices.append(parameter)
            else:
                (embeddings if "embeddings" in name else others).append(parameter)
        self.muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.1, momentum=0.95)
        groups = [{"params": embeddings, "lr": EMBEDDING_LR}, {"params": others, "lr": ADAMW_LR}]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
        self.peak = [group["lr"] for group in self.groups()]

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, scale: float) -> None:
        """One update at `scale` times the peak learning rates; gradients are cleared."""
        for group, peak in zip(self.groups(), self.peak, strict=True):
            group["lr"] = peak * scale
        for parameter, views in self.fused:
            for expert, view in enumerate(views):
                view.grad = None if parameter.grad is None else parameter.grad[expert]
        self.muon.step()
        self.adamw.step()
        for group in self.groups():
            for parameter in group["params"]:
                parameter.grad = None
        for parameter, _ in self.fused:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state of both, flat, for safetensors."""
        named: dict[str, Tensor] = {}
        for label, optimizer in (("muon", self.muon), ("adamw", self.adamw)):
            for index, state in optimizer.state_dict()["state"].items():
                named |= {f"{label}.{index}.{key}": torch.as_tensor(value).contiguous() for key, value in state.items()}
        return named

    def load(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for label, optimizer in (("muon", self.muon), ("adamw", self.adamw)):
            full = optimizer.state_dict()
            for name, value in named.items():
                owner, index, key = name.split(".")
                if owner == label:
                    full["state"].setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(full)


class ExpertLoad:
    """Counts the tokens each expert receives and moves the correction biases against the imbalance."""

    def __init__(self, model: NemotronHForCausalLM) -> None:
        self.routers = {name: module for name, module in model.named_modules() if name.endswith("mixer.gate")}
        self.counts = {name: torch.zeros(module.num_experts) for name, module in self.routers.items()}
        for name, module in self.routers.items():
            module.register_forward_hook(self._counter(name))

    def _counter(self, name: str) -> Any:
        def count(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            self.counts[name] += torch.bincount(output[2].flatten(), minlength=len(self.counts[name])).float()

        return count

    @torch.no_grad()
    def balance(self, rate: float) -> dict[str, list[float]]:
        """Raise the bias of underused experts by `rate`, lower the others'; the shares so far, which are forgotten."""
        shares = {}
        for name, counts in self.counts.items():
            self.routers[name].e_score_correction_bias += rate * torch.sign(counts.mean() - counts)
            shares[name] = [round(share, 4) for share in (counts / counts.sum()).tolist()]
            counts.zero_()
        return shares

    def forget(self) -> None:
        """Drop what was counted outside training."""
        for counts in self.counts.values():
            counts.zero_()
