"""Turn a training run of `train_tiny_hybrid.py` into the folder that ships as `minitron/builtin/`.

    python examples/export_tiny_hybrid.py --sources PACKAGES --work RUN -o minitron/builtin

Writes model/ (bf16 safetensors in the names and the config dialect of the released NemotronH checkpoints, tokenizer),
text/ and curve.json. Each is written beside its place and renamed.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_hybrid_model import PATTERN, SPECIAL_TOKENS, build_config
from tiny_hybrid_text import Document, deal, read_documents
from tokenizers import Tokenizer
from transformers import AutoTokenizer, NemotronHForCausalLM, PreTrainedTokenizerFast

# What save_pretrained writes for its own use, or cannot write as strict JSON (an infinite time step limit).
DROPPED_CONFIG_KEYS = (
    "layers_block_type",
    "layer_types",
    "mtp_layers_block_type",
    "time_step_limit",
    "use_mamba_kernels",
)
TEXTS = {"calibration": 420_000, "distill": 2_100_000, "heldout": 130_000}  # characters at most


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in its place."""
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)


def trained_model(work: Path) -> tuple[NemotronHForCausalLM, dict[str, Any]]:
    """The latest checkpoint in bf16, its routers' correction biases in fp32, and the state of the run."""
    folder = work / (work / "latest").read_text()
    model = NemotronHForCausalLM(build_config())
    model.load_state_dict(load_file(folder / "model.safetensors"))
    biases = {
        name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")
    }
    model.to(torch.bfloat16)
    for name, bias in biases.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, bias)
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return model.eval(), state


def released_dialect(config: dict[str, Any]) -> dict[str, Any]:
    """The config as the released NemotronH checkpoints spell it."""
    kept = {key: value for key, value in config.items() if key not in DROPPED_CONFIG_KEYS}
    kept |= {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hybrid_override_pattern": PATTERN,
        "num_hidden_layers": len(PATTERN), "mamba_ssm_cache_dtype": "float32",
    }  # fmt: skip
    return dict(sorted(kept.items()))


def write_model(work: Path, target: Path) -> dict[str, Any]:
    """Write the checkpoint folder, prove that it loads whole and computes the same, and return the run's state."""
    model, state = trained_model(work)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps(released_dialect(config), indent=2, allow_nan=False) + "\n")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(work / "tokenizer.json")),
        pad_token=SPECIAL_TOKENS[0],
        bos_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        clean_up_tokenization_spaces=False,
        model_max_length=model.config.max_position_embeddings,
    )
    tokenizer.save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    check(partial, model)
    replace_folder(partial, target)
    return state


@torch.no_grad()
def check(folder: Path, model: NemotronHForCausalLM) -> None:
    """No key missing, unexpected or mismatched; the same logits to the bit; text comes back from the tokenizer."""
    loaded, info = NemotronHForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, trust_remote_code=False, use_safetensors=True
    )
    found = {key: value for key, value in info.items() if value}
    if found:
        raise ValueError(f"{folder} does not load cleanly: {found}")
    tokens = torch.arange(3, 203).view(2, 100)
    if not torch.equal(loaded.eval()(tokens).logits, model(tokens).logits):
        raise ValueError(f"{folder} computes other logits than the model it was saved from")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    sample = 'He said, "It is 3 o\'clock."\n\n  Naïve — 雪'
    if tokenizer.decode(tokenizer(sample)["input_ids"]) != sample:
        raise ValueError(f"the tokenizer in {folder} does not give text back")


def sentences_cut(text: str, size: int) -> str:
    """At most `size` characters of a text, ending with a sentence."""
    if len(text) <= size:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s)", text[:size])]
    return text[: ends[-1]] if ends else text[:size]


def mixed(documents: list[Document], characters: int) -> str:
    """Documents in an order that mixes the sources evenly, with an empty line between, up to a number of characters."""
    by_source: dict[str, list[Document]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    placed = [
        ((index + 0.5) / len(group), document) for group in by_source.values() for index, document in enumerate(group)
    ]
    chosen, left = [], characters
    for _, document in sorted(placed, key=lambda pair: pair[0]):
        if left < 200:
            break
        chosen.append(sentences_cut(document.text, left))
        left -= len(chosen[-1]) + 2
    return "\n\n".join(chosen) + "\n"


def write_texts(sources: Path, target: Path) -> None:
    """Write calibration.txt and distill.txt (trained on, no document in both) and heldout.txt (never trained on)."""
    parts = deal(read_documents(sources))
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, characters in TEXTS.items():
        (partial / f"{name}.txt").write_text(mixed(parts[name], characters), encoding="utf-8")
    replace_folder(partial, target)


def write_curve(state: dict[str, Any], target: Path) -> None:
    """Write how far the run came and its curve, a line a point."""
    summary = json.dumps({key: round(state[key]) for key in ("step", "tokens", "seconds")})
    points = ",\n  ".join(json.dumps(point) for point in state["curve"])
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(f'{summary[:-1]}, "curve": [\n  {points}\n]}}\n')
    partial.replace(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder that holds the packages with the text")
    parser.add_argument("--work", type=Path, required=True, help="folder of the training run")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder to write model/, text/ and curve.json into"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    run_state = write_model(arguments.work, arguments.output / "model")
    write_texts(arguments.sources, arguments.output / "text")
    write_curve(run_state, arguments.output / "curve.json")
