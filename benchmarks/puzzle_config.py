"""The config class by which vLLM reads a nemotron_h_puzzle folder, as published ones bring one along.

Neither transformers nor vLLM has a class for this type: vLLM's NemotronH asks its folder's config for that of each
layer, by the method below.  Copied into a folder as configuration_nemotron_h_puzzle.py, named in its config.json under
`auto_map`, and run by vLLM with --trust-remote-code; Minitron needs none of it.  Imports nothing of Minitron.
"""

import copy
from typing import Any

from transformers import NemotronHConfig

WORDS = {"mamba": "linear_attention", "attention": "full_attention"}


class NemotronHPuzzleConfig(NemotronHConfig):
    """A NemotronH config with one object a layer, whose entries stand in for the config's own there."""

    model_type = "nemotron_h_puzzle"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **others: Any) -> None:
        kinds = [WORDS.get(block["block_type"], block["block_type"]) for block in block_configs or ()]
        super().__init__(**{"layers_block_type": kinds, **others} if kinds else others)
        self.block_configs = block_configs

    def get_nemotron_h_config_for_layer(self, layer: int) -> NemotronHConfig:
        """What vLLM builds a layer of."""
        own = copy.deepcopy(self)
        for key, value in self.block_configs[layer].items():
            if key != "block_type" and value is not None:
                setattr(own, key, value)
        return own
