"""Models whose layers differ in size, built of transformers' own blocks, each with a config of its own layer.

transformers reads such configs (`per_layer_config`) and its models refuse them; of nemotron_h_puzzle it knows nothing.
The classes here are its NemotronH in everything else, and registered with it under that model type: whatever builds or
loads a model by its config builds these.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, NemotronHConfig, NemotronHForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import (
    NemotronHBlock,
    NemotronHMamba2Mixer,
    NemotronHModel,
    NemotronHPreTrainedModel,
    NemotronHRMSNorm,
)

from minitron.errors import MinitronError

_KIND: Final = "block_type"


@strict
class NemotronHPuzzleConfig(NemotronHConfig):  # type: ignore[misc]
    """A NemotronH config with one object a layer, whose entries stand in for the config's own there."""

    model_type = "nemotron_h_puzzle"

    layers_block_type: list[str] | None
    block_configs: list[dict[str, Any]] | None = None
    mtp_block_configs: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layers_block_type is None and self.block_configs:
            self.layers_block_type = [block[_KIND] for block in self.block_configs]
        super().__post_init__(**kwargs)

    def of_layer(self, layer: int) -> NemotronHConfig:
        """The config of which a layer's block is built; raises MinitronError for what no block of transformers has."""
        own = copy.copy(self)
        for key, value in (self.block_configs or [{}] * self.num_hidden_layers)[layer].items():
            if key != _KIND and value is not None:
                setattr(own, key, value)
        if own.sliding_window is not None:
            raise MinitronError(
                f"config.json gives layer {layer} a sliding_window of {own.sliding_window!r:.40}, and transformers' "
                "NemotronH has no windows: the model is inspected and planned for and nothing else; choose another."
            )
        return own


def _block(config: NemotronHPuzzleConfig, layer: int) -> NemotronHBlock:
    """A block of its layer's sizes.  What its modules read while they run, such as which kernels to use, is the
    model's: a copy would not hear of a change."""
    own = config.of_layer(layer)
    block = NemotronHBlock(own, layer_idx=layer)
    for module in block.modules():
        if getattr(module, "config", None) is own:
            module.config = config
    return block


class _Initialised:
    """transformers' initialisation of a model whose mixers may differ in the number of heads: it takes the config's."""

    config: NemotronHPuzzleConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, NemotronHMamba2Mixer):
            self.config = copy.copy(config)
            self.config.mamba_num_heads = module.num_heads
        try:
            super()._init_weights(module)  # type: ignore[misc]
        finally:
            self.config = config


class NemotronHPuzzleModel(_Initialised, NemotronHModel):  # type: ignore[misc]
    """NemotronHModel with blocks of their own sizes."""

    config_class = NemotronHPuzzleConfig

    def __init__(self, config: NemotronHPuzzleConfig) -> None:
        # NemotronHModel's own would build layers of one size.
        NemotronHPreTrainedModel.__init__(self, config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_block(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm_f = NemotronHRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()


class NemotronHPuzzleForCausalLM(_Initialised, NemotronHForCausalLM):  # type: ignore[misc]
    """NemotronHForCausalLM around a NemotronHPuzzleModel."""

    config_class = NemotronHPuzzleConfig

    def __init__(self, config: NemotronHPuzzleConfig) -> None:
        NemotronHPreTrainedModel.__init__(self, config)
        self.model = NemotronHPuzzleModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(NemotronHPuzzleConfig.model_type, NemotronHPuzzleConfig)
AutoModelForCausalLM.register(NemotronHPuzzleConfig, NemotronHPuzzleForCausalLM)
