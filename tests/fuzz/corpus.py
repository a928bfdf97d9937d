"""The sound inputs, made once: tiny models, texts, scores, plans, a recipe, and a run that stopped half way."""

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import tiny_models
import torch
from family_sizes import FAMILY_SIZES
from quantising import quantise_folder
from torch import Tensor

TEMPLATE = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"

SECTIONS: tuple[dict[str, Any], ...] = (
    {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "packing_format": "auto_round:auto_gptq"},
    {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]},
    {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
        },
    },
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["re:.*lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
            }
        },
    },
    {"quant_method": "eetq", "weights": "int8"},
    {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]},
    {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
        "ignored_layers": ["lm_head"],
    },
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "dynamic": {}},
    {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}},
        "skip_modules": [],
    },
    {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
    {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.self_attn.q_proj": {"quant_algo": "NVFP4", "group_size": 16}},
    },
    {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "mxfp8", "ignore": ["lm_head"]},
    {"quant_method": "quanto", "weights": "int8", "modules_to_not_convert": None},
    {
        "quant_method": "quark",
        "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
        "exclude": [],
    },
    {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}},
    },
    {"quant_method": "something new", "bits": 3},
)
"""What configs of every method say."""

RECIPE = """learning_rate = 1e-4
sequence_length = 16
batch_tokens = 32
betas = [0.9, 0.95]
data = ["0.7:a.jsonl", "0.3:a.txt"]

[[stages]]
steps = 1
loss = "kl"

[[stages]]
tokens = "64"
data = ["a.txt"]
"""

FAMILIES = ("qwen3_moe", "gemma3_text", "deepseek_v3", "gpt_oss", "mamba2", "falcon_h1", "qwen3_next")
"""Types of further models."""

TRAINING = ("--sequence-length", "16", "--batch-tokens", "32", "--validation-sequences", "2")
"""What makes a distillation short."""


def make_corpus(folder: Path) -> Path:
    """Every input under its name; the commands that make some of them run here."""
    folder.mkdir(parents=True)
    hybrid = tiny_models.save_hybrid(folder / "hybrid")
    llama = tiny_models.save_llama(folder / "llama")
    for model in (hybrid, llama):
        (model / "chat_template.jinja").write_text(TEMPLATE)
        (model / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 2}')
    _shard(llama, folder / "sharded")
    sizes = FAMILY_SIZES["llava"][0]
    tiny_models.save_family(folder / "vision", "llava", **sizes)
    quantise_folder(
        llama, folder / "fp8", _fp8, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    )
    blocks = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    quantise_folder(llama, folder / "blocks", _blocks, blocks)
    _write_texts(folder)
    for kind in FAMILIES:
        tiny_models.save_family(folder / kind, kind, **FAMILY_SIZES[kind][0])
    _write_companions(llama, folder / "companions")
    (folder / "recipe.toml").write_text(RECIPE)
    _run("score", hybrid, "--data", folder / "a.txt", "-o", folder / "scores.safetensors", *SCORING)
    _run(
        "plan",
        hybrid,
        "--budget",
        "350KiB",
        "--context",
        "64",
        "--scores",
        folder / "scores.safetensors",
        "-o",
        folder / "report",
    )
    for name in ("plan.json", "plan.bases.safetensors"):
        if (folder / "report" / name).exists():
            shutil.copy(folder / "report" / name, folder / name)
    _run("prune", hybrid, "-o", folder / "student", "--plan", folder / "plan.json")
    _stop_half_way(folder)
    return folder


SCORING = ("--samples", "2", "--sequence-length", "16", "--layer-scores", "fast", "--layer-samples", "2")
"""What makes scoring short."""


def _run(*arguments: str | Path) -> None:
    from cli.app import run

    code = run([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"{arguments} left with {code}")


def _shard(source: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(source / "model.safetensors")
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _fp8(_: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max().float() / 448
    return {".weight": (weight / scale).to(torch.float8_e4m3fn), ".weight_scale": scale}


def _blocks(_: str, weight: Tensor) -> dict[str, Tensor]:
    rows, columns = (-(-size // 16) for size in weight.shape)
    return {".weight": weight.to(torch.float8_e4m3fn), ".weight_scale_inv": torch.ones(rows, columns)}


def _write_companions(source: Path, folder: Path) -> None:
    """A folder with files that say beside config.json how it is quantised, that it is an adapter's, and what tokens
    there are: every case has one of them, damaged."""
    shutil.copytree(source, folder)
    algorithm = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    files: dict[str, Any] = {
        "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": algorithm},
        "quantize_config.json": {"bits": 4, "group_size": 128, "desc_act": False},
        "quant_config.json": {"zero_point": True, "q_group_size": 128, "w_bit": 4},
        "special_tokens_map.json": {"eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": False}},
        "added_tokens.json": {"<new>": 300},
        "adapter_config.json": {"base_model_name_or_path": "org/model", "peft_type": "LORA"},
        "minitron.json": {"parameters": 1, "weight_bytes": 4},
        "preprocessor_config.json": {"size": 1},
    }
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))


def _write_texts(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = tiny_models.write_text(folder / "a.txt").read_text()
    pieces = [piece.strip() + "." for piece in text.split(".") if piece.strip()]
    records = [{"text": " ".join(pieces[at : at + 5])} for at in range(0, len(pieces), 5)]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "a.json").write_text(json.dumps(records))
    chat = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}
        for one, other in zip(pieces[::2], pieces[1::2], strict=False)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chat))
    (folder / "a.csv").write_text("id,text\n" + "".join(f'{n},"{one["text"]}"\n' for n, one in enumerate(records)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "a.parquet")


def _stop_half_way(folder: Path) -> None:
    """run/out.work: what a distillation leaves that was stopped after its first checkpoint."""
    from distill.run.work import Work

    def stop(work: Work) -> None:
        raise KeyboardInterrupt

    closed, Work.close = Work.close, stop  # type: ignore[method-assign]
    try:
        with_run = [str(part) for part in distillation(folder, folder / "run" / "out")]
        from cli.app import run

        run(with_run)
    finally:
        Work.close = closed  # type: ignore[method-assign]
    newest = max((folder / "run" / "out.work" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    shutil.rmtree(folder / "run" / "out")


def distillation(folder: Path, output: Path) -> list[str | Path]:
    """The command line of the run that stopped."""
    return [
        "distill",
        folder / "student",
        "--teacher",
        folder / "hybrid",
        "--data",
        folder / "a.jsonl",
        "-o",
        output,
        "--steps",
        "2",
        "--checkpoint-every",
        "1",
        *TRAINING,
    ]


@cache
def family_config(index: int) -> bytes:
    """The config.json of one of the tiny models of all families, by number."""
    from transformers import AutoConfig

    kinds = [(kind, sizes) for kind in sorted(FAMILY_SIZES) for sizes in FAMILY_SIZES[kind]]
    kind, sizes = kinds[index % len(kinds)]
    config = AutoConfig.for_model(kind, **sizes)
    return json.dumps(json.loads(config.to_json_string(use_diff=False)) | {"architectures": None}).encode()


def quantised_config(rng: random.Random, llama: bytes) -> bytes:
    """A config.json with what one of the methods says."""
    return json.dumps(json.loads(llama) | {"quantization_config": rng.choice(SECTIONS)}).encode()
