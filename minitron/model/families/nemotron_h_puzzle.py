"""Nemotron-H as Puzzle leaves it (Bercovich et al. 2024, arXiv 2411.19146): layers of one kind differ in their sizes.

`block_configs` has one object a layer and `mtp_block_configs` one a layer of the prediction block: its `block_type`,
and what stands in for the config's own entries there, such as how wide experts are and how many a token is sent to.
"""

from dataclasses import replace
from typing import Any, Final, NoReturn

from minitron.errors import MinitronError
from minitron.model.axes import Config
from minitron.model.blocks import read_blocks
from minitron.model.families.family import Blocks
from minitron.model.families.layouts import read_layout, read_words
from minitron.model.families.nemotron_h import BLOCKS, MTP_BLOCKS, NEMOTRON_H

_WHY: Final = "its layers differ in size"


def _letters(config: Config, key: str) -> str:
    kinds = [block.get("block_type") for block in read_blocks(config, key)]
    if None in kinds:
        raise MinitronError(
            f"config.json: {key} says no block_type of layer {kinds.index(None)}; give each layer one of mamba, "
            "attention, mlp and moe."
        )
    return read_words({key: kinds}, key)


def _layout(config: Config) -> str:
    letters = _letters(config, BLOCKS)
    if not letters:
        raise MinitronError(f"config.json has no {BLOCKS}; a nemotron_h_puzzle model needs one object a layer; add it.")
    told = {key: config[key] for key in ("layers_block_type", "hybrid_override_pattern") if config.get(key)}
    count = config.get("num_hidden_layers")
    if count not in (None, len(letters)) or any(read_layout({key: value}) != letters for key, value in told.items()):
        named = ", ".join([*told, *(["num_hidden_layers"] if count is not None else [])])
        raise MinitronError(
            f"config.json: {BLOCKS} describes the layers {letters}, and {named} says something else; correct one of "
            "them."
        )
    return letters


def _mtp_layout(config: Config) -> str:
    if not config.get("num_nextn_predict_layers"):
        return ""
    return _letters(config, MTP_BLOCKS) or NEMOTRON_H.mtp_layout(config)


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> NoReturn:
    raise MinitronError(f"no layer of a nemotron_h_puzzle model can be left out, as {_WHY}; keep all of them.")


def _set_apart(config: dict[str, Any], layers: Blocks, ahead: Blocks) -> None:
    config[BLOCKS] = [{**block, **own} for block, own in zip(config[BLOCKS], layers, strict=True)]


NEMOTRON_H_PUZZLE = replace(
    NEMOTRON_H,
    name="nemotron_h_puzzle",
    model_types=("nemotron_h_puzzle",),
    also={"nemotron_h": BLOCKS},
    axes={name: replace(row, fixed=row.fixed or _WHY) for name, row in NEMOTRON_H.axes.items()},
    cache={**NEMOTRON_H.cache, "attention": replace(NEMOTRON_H.cache["attention"], window="sliding_window")},
    layout=_layout,
    edit_layout=_edit,
    together=lambda config: len(_layout(config)),
    set_apart=_set_apart,
    mtp_layout=_mtp_layout,
    blocks=BLOCKS,
    mtp_blocks=MTP_BLOCKS,
    refused={key: why for key, why in NEMOTRON_H.refused.items() if key != BLOCKS},
    summary="the layers of `nemotron_h`, of sizes that differ from layer to layer (Nemotron 3 Puzzle: only sizes by "
    "layer are cut)",
)
