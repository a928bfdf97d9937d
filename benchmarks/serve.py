"""What Minitron writes, served over HTTP by vLLM on the CPU and compared with transformers on the same token ids.

    make serve                        all rows of MODELS (benchmarks/served_models.py)
    make serve ARGS="--only qwen3"    those whose name contains the word

Each checkpoint is made with minitron's own commands in the ordinary environment, and served by the very line that
`minitron plan --engine vllm` prints for it, with the address to listen on behind it.  The server reads the ids of
held-out text and gives their log-probabilities, and a greedy answer; transformers does the same in bf16.  What vLLM
says of its pool of blocks is held against what the plan said.  The table goes into benchmarks/RESULTS.md, row by row.
Checkpoints and rows that are in the work folder stay.  Ends with an error where a row is not as it should be.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from served_models import CONTEXT, MODELS, ROUNDING, TOKENS, checkpoint
from smollm2 import minitron, write_section

from minitron import builtin
from minitron.files import read_json, write_json
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("RESULTS.md")
LAUNCHER = Path(__file__).with_name("vllm_cpu.py")

STEP, SEQUENCES, LENGTH, ANSWER = 2048, 4, 256, 8
WORKLOAD = ("--context", CONTEXT, "--concurrency", 4, "--max-num-batched-tokens", STEP, "--budget", "1.5GiB")
ENGINE = ("--engine", "vllm", "--no-cuda-graphs", "--block-size", "32")
"""Without graphs, and in the smallest blocks that vLLM's CPU attention has."""

POOL = ("block_size_tokens", "budget_blocks_count", "pool_tokens")
"""Tokens of a block, blocks, tokens that they hold."""

SERVING = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Threads that spin against another process's make a step up to a hundred times slower.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True)
class Row:
    """What was found of one checkpoint."""

    perplexity: float
    """By transformers."""

    error: str = ""
    """Why vLLM does not serve it."""

    served: float = 0.0
    """Perplexity by vLLM."""

    largest: float = 0.0
    """The largest difference of a token's log-probability."""

    mean: float = 0.0
    same: int = 0
    """Greedy tokens that agree."""

    planned: list[int] = field(default_factory=list)
    pool: list[int] = field(default_factory=list)
    """POOL as planned, and as vLLM tells it."""

    def sound(self, refused: str) -> bool:
        """Whether it was served with the pool that was planned, and is the same function; or is `refused` so."""
        if self.error or refused:
            return bool(refused) and refused in self.error
        return self.planned == self.pool and abs(math.log(self.served / self.perplexity)) < 0.03

    def cells(self, name: str) -> str:
        """The line of the table."""
        if self.error:
            return f"| {name} | {self.perplexity:.2f} | not served: {self.error} | | | | |"
        size, blocks, tokens = self.pool
        pool = f"{blocks:,} x {size}: {tokens:,}" + ("" if self.planned == self.pool else f", planned {self.planned}")
        return (
            f"| {name} | {self.perplexity:.2f} | {self.served:.2f} | {self.largest:.3f} | {self.mean:.4f} | "
            f"{self.same} of {ANSWER} | {pool} |"
        )


def planned(folder: Path) -> tuple[list[str], list[int]]:
    """The words of the line that `minitron plan` prints for it, and what vLLM should say of its pool."""
    leave = ("--layers", read_spec(folder).value("num_hidden_layers") or len(read_spec(folder).layers))
    document = json.loads(minitron("plan", folder, *WORKLOAD, *leave, *ENGINE, "--json"))
    return shlex.split(document["serve"]), [document["engine_log"]["parent"][name] for name in POOL]


class Server:
    """vLLM, from its first answer on."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def flags(self) -> list[str]:
        """Where to listen."""
        return ["--host", "127.0.0.1", "--port", str(self.port)]

    def get(self, path: str, body: dict[str, Any] | None = None, seconds: int = 300) -> str:
        """The answer to a request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            told: str = answer.read().decode()
        return told

    def ask(self, model: str, prompt: list[int], **settings: Any) -> dict[str, Any]:
        """One completion, greedy."""
        body = {"model": model, "prompt": prompt, "temperature": 0, "return_token_ids": True, **settings}
        choice: dict[str, Any] = json.loads(self.get("/v1/completions", body))["choices"][0]
        return choice

    def pool(self) -> list[int]:
        """POOL, by its metrics and its log."""
        (info,) = re.findall(r"^vllm:cache_config_info\{(.*)\}", self.get("/metrics"), re.MULTILINE)
        told = dict(re.findall(r'(\w+)="([^"]*)"', info))
        (tokens,) = re.findall(r"KV cache size: ([\d,]+) tokens", self.log.read_text())
        return [int(told["block_size"]), int(told["num_gpu_blocks"]), int(tokens.replace(",", ""))]

    def reason(self) -> str:
        """The first error of the log."""
        lines = (line for line in self.log.read_text().splitlines() if " WARNING " not in line)
        errors = [line for line in lines if re.search(r"\w+(Error|Exception): ", line)]
        return errors[0].split("] ")[-1].strip()[:300] if errors else f"see {self.log}"

    def wait(self, process: "subprocess.Popen[bytes]", seconds: int = 600) -> None:
        """Until it answers; raises RuntimeError where it ended or does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(self.reason())
            try:
                self.get("/health", seconds=5)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        raise RuntimeError(f"vLLM gave no answer in {seconds} s; see {self.log}")


@contextlib.contextmanager
def serving(python: Path, line: list[str], log: Path) -> Iterator[Server]:
    """The server of a line; ended with its children."""
    server = Server(log)
    environment = os.environ | SERVING
    environment.pop("PYTHONPATH", None)
    assert line[0] == "vllm"
    command = [str(python), str(LAUNCHER), *line[1:], *server.flags]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            server.wait(process)
            yield server
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def of_vllm(server: Server, model: str, ids: list[list[int]]) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities of all ids but each sequence's first, and the greedy answer to the first half of the first."""
    found = []
    for row in ids:
        told = server.ask(model, row, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
        found.append([told[place][str(row[place])]["logprob"] for place in range(1, len(row))])
    answer = server.ask(model, ids[0][: LENGTH // 2], max_tokens=ANSWER, ignore_eos=True)["token_ids"]
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


def compare(options: argparse.Namespace, name: str) -> Row:
    """The row of a model."""
    folder = checkpoint(options.work, name)
    tokens = load_tokenizer(folder)(builtin.HELDOUT.read_text(encoding="utf-8")[:20_000])["input_ids"]
    ids = [tokens[place * LENGTH : (place + 1) * LENGTH] for place in range(SEQUENCES)]
    mine, answer = of_transformers(folder, ids)
    perplexity = math.exp(-mine.mean())
    line, expected = planned(folder)
    line += MODELS[name].flags
    try:
        with serving(options.python, line, options.work / f"{folder.name}.log") as server:
            theirs, answered = of_vllm(server, line[2], ids)
            pool = server.pool()
    except RuntimeError as error:
        return Row(perplexity, error=str(error))
    gap = (mine - theirs).abs()
    same = sum(a == b for a, b in zip(answer, answered, strict=True))
    return Row(
        perplexity,
        served=math.exp(-theirs.mean()),
        largest=float(gap.max()),
        mean=float(gap.mean()),
        same=same,
        planned=expected,
        pool=pool,
    )


def report(rows: dict[str, Row]) -> str:
    """The section of RESULTS.md."""
    wrong = [name for name, row in rows.items() if row.planned != row.pool]
    return "\n".join(
        [
            "## Served by vLLM (`make serve`)",
            "",
            "| model | perplexity, transformers | perplexity, vLLM | largest log-probability difference | mean | "
            "greedy tokens that agree | blocks x tokens of one: tokens of the pool |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(row.cells(name) for name, row in rows.items()),
            "",
            "vLLM 0.32 (vllm-cpu), bf16, over HTTP by the line that `minitron plan --engine vllm` prints, for "
            f"`{' '.join(map(str, WORKLOAD + ENGINE[2:]))}`; transformers in bf16 on the same {SEQUENCES} x {LENGTH} "
            "ids of the built-in held-out text. The pool is what vLLM's metrics and log say; "
            + ("in every row it is what `plan` said." if not wrong else f"it is not what `plan` said: {wrong}."),
            "",
            f"Pruned: MLPs of 1,024 of 1,536, refitted. Distilled: {TOKENS:,} tokens, to have such a folder loaded, "
            f"not to win much back. int8 and int4: rounded on {ROUNDING[1]} x {ROUNDING[3]} tokens; transformers runs "
            "their weights dequantised, vLLM also rounds the inputs of int8. Random models have no better perplexity "
            "than their vocabulary of 2,048.",
            "",
        ]
    )


def main() -> None:
    """Make, serve and compare each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "serve", help="folder for everything that is made")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", help="vLLM's Python")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="serve what is in the work folder's rows once more")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "rows.json"
    rows = {name: Row(**told) for name, told in read_json(path).items()} if path.exists() else {}
    for name in (name for name, model in MODELS.items() if model.row and options.only in name):
        if options.again or name not in rows:
            rows[name] = compare(options, name)
            write_json(path, {name: asdict(row) for name, row in rows.items()})
        print(rows[name].cells(name), flush=True)
    found = {name: rows[name] for name in MODELS if name in rows}
    write_section(options.results, report(found))
    if unsound := [name for name, row in found.items() if not row.sound(MODELS[name].refused)]:
        parser.exit(1, f"Not as it should be: {'; '.join(unsound)}\n")


if __name__ == "__main__":
    main()
