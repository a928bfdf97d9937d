"""Train the built-in model from scratch: a NemotronH of 6.7 million parameters, on one CPU thread in about 85 minutes.

    export OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_MMAP_THRESHOLD_=4294967296
    python examples/train_tiny_hybrid.py --sources PACKAGES --work RUN --minutes 85

PACKAGES holds the packages named in `tiny_hybrid_text.py`; RUN receives the tokenizer, the curve and a checkpoint that
a second call with the same arguments goes on from. `export_tiny_hybrid.py` turns RUN into the folder that ships.
The two MALLOC settings keep glibc from giving every big tensor back to the system, at a page fault for each 4 KB.

Every kind of layer stands more than once in the stack. Matrices are trained by Muon (Jordan et al. 2024), the rest by
AdamW; experts are kept busy by the auxiliary-loss-free update of the router's correction bias (Wang et al. 2024,
arXiv 2408.15664), which transformers does not do. The learning rate follows the clock, not the step count, so that it
reaches zero when the time is up on any machine.

Shape letters: B batch, T tokens.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_hybrid_model import ExpertLoad, Optimizers, build_config, initialise, train_tokenizer
from tiny_hybrid_scan import causal_convolution, grouped_chunk_scan
from tiny_hybrid_text import Document, deal, read_documents
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import NemotronHForCausalLM
from transformers.models.nemotron_h import modeling_nemotron_h

SEQUENCE_LENGTH, BATCH_SIZE = 512, 6
WARMUP, DECAY_FROM = 0.02, 0.35  # shares of the run's time
BALANCE_RATE = 0.003
SAVE_SECONDS, EVALUATE_SECONDS = 240, 240
VALIDATION_WINDOWS = 48


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[list[int]]:
    """<s> document </s> for each document."""
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [[1, *item.ids, 2] for item in encoded]


def batches(pieces: list[list[int]], start: int) -> Iterator[tuple[Tensor, int]]:
    """Endless [B, T + 1] batches from batch number `start` on, each with its epoch.

    Each epoch shuffles the documents, joins them, cuts windows at a fresh offset and shuffles the windows.
    """
    epoch, number = 0, 0
    while True:
        generator = torch.Generator().manual_seed(1000 + epoch)
        order = torch.randperm(len(pieces), generator=generator).tolist()
        stream = torch.tensor([token for index in order for token in pieces[index]])
        offset = int(torch.randint(SEQUENCE_LENGTH, (1,), generator=generator))
        windows = (len(stream) - offset - 1) // SEQUENCE_LENGTH
        shuffled = torch.randperm(windows, generator=generator)
        for rows in shuffled[: windows // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE):
            number += 1
            if number > start:
                starts = [offset + int(row) * SEQUENCE_LENGTH for row in rows]
                yield torch.stack([stream[at : at + SEQUENCE_LENGTH + 1] for at in starts]), epoch
        epoch += 1


@torch.no_grad()
def validation_loss(model: NemotronHForCausalLM, pieces: list[list[int]], windows: int) -> float:
    """Nats a token over windows spread evenly over the validation documents."""
    stream = torch.tensor([token for piece in pieces for token in piece])
    windows = min(windows, (len(stream) - 1) // SEQUENCE_LENGTH)
    step = (len(stream) - 1) // windows
    total = 0.0
    model.eval()
    for index in range(windows):
        window = stream[None, index * step : index * step + SEQUENCE_LENGTH + 1]
        total += language_loss(model, window).item()
    model.train()
    return total / windows


def language_loss(model: NemotronHForCausalLM, window: Tensor) -> Tensor:
    """Mean cross entropy of a [B, T + 1] window in nats."""
    logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


def schedule(progress: float) -> float:
    """Share of the peak learning rate at a share of the run's time: warm-up, flat, linear to zero."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    return 1.0 if progress < DECAY_FROM else max(0.0, (1 - progress) / (1 - DECAY_FROM))


def save(work: Path, model: NemotronHForCausalLM, optimizers: Optimizers, state: dict[str, Any]) -> None:
    """Write one checkpoint folder and swap it in: a kill leaves the old one or the new one."""
    number = state["step"]
    folder = work / f"step-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    save_file(optimizers.tensors(), folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    pointer = work / "latest.tmp"
    pointer.write_text(folder.name)
    pointer.replace(work / "latest")
    for old in work.glob("step-*"):
        if old != folder:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def restore(work: Path, model: NemotronHForCausalLM, optimizers: Optimizers) -> dict[str, Any]:
    """Load the latest checkpoint if there is one; the state of a fresh run otherwise."""
    if not (work / "latest").exists():
        return {"step": 0, "tokens": 0, "seconds": 0.0, "curve": []}
    folder = work / (work / "latest").read_text()
    # In place, so that the experts' views keep sharing memory with the fused tensors.
    model.load_state_dict(load_file(folder / "model.safetensors"))
    optimizers.load(load_file(folder / "optimizer.safetensors"))
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def prepare(sources: Path, work: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Read the text, train the tokenizer once, and encode the train and validation documents."""
    work.mkdir(parents=True, exist_ok=True)
    parts = deal(read_documents(sources))
    path = work / "tokenizer.json"
    if not path.exists():
        train_tokenizer([document.text for document in parts["train"]], build_config().vocab_size).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    return encode(tokenizer, parts["train"]), encode(tokenizer, parts["validation"])


class Run:
    """One training run: the model, its optimizers, and how far it has come."""

    def __init__(self, work: Path, validation: list[list[int]], bf16: bool) -> None:
        self.work, self.validation, self.bf16 = work, validation, bf16
        self.model = NemotronHForCausalLM(build_config())
        initialise(self.model)
        self.model.train()
        self.optimizers, self.load = Optimizers(self.model), ExpertLoad(self.model)
        self.state = restore(work, self.model, self.optimizers)
        self.losses: list[float] = []
        self.shares: dict[str, list[float]] = {}

    def step(self, batch: Tensor, scale: float) -> None:
        """One update on a [B, T + 1] batch at `scale` times the peak learning rates."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = language_loss(self.model, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.state['step']}")
        self.optimizers.step(scale)
        self.shares = self.load.balance(BALANCE_RATE * scale)
        self.losses.append(loss.item())
        self.state["step"] += 1
        self.state["tokens"] += batch[:, 1:].numel()

    def record(self, scale: float) -> None:
        """Add one point to the curve."""
        point = {
            "step": self.state["step"],
            "tokens": self.state["tokens"],
            "seconds": round(self.state["seconds"]),
            "learning_rate_scale": round(scale, 4),
            "train_loss": round(sum(self.losses) / len(self.losses), 4),
            "validation_loss": round(validation_loss(self.model, self.validation, VALIDATION_WINDOWS), 4),
            "expert_share": self.shares,
        }
        self.load.forget()
        self.losses.clear()
        self.state["curve"].append(point)
        print(json.dumps(point), flush=True)

    def line(self, epoch: int, scale: float) -> str:
        """Where the run stands, for the log."""
        recent = self.losses[-20:]
        busiest = max(max(share) for share in self.shares.values())
        state = self.state
        return (
            f"step {state['step']} epoch {epoch} {state['tokens']:,} tokens loss {sum(recent) / len(recent):.3f} "
            f"lr x{scale:.2f} busiest expert {busiest:.0%} {state['tokens'] / state['seconds']:.0f} tokens/s"
        )


def train(sources: Path, work: Path, minutes: float, stop_after: int | None, bf16: bool) -> None:
    """Train until the time is up, going on from the latest checkpoint in `work`."""
    torch.manual_seed(0)
    modeling_nemotron_h.mamba2_chunk_scan = grouped_chunk_scan
    modeling_nemotron_h.causal_conv1d_fn = causal_convolution
    pieces, validation = prepare(sources, work)
    run = Run(work, validation, bf16)
    state = run.state
    size = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"{size:,} parameters, {sum(map(len, pieces)):,} tokens of text, from step {state['step']}", flush=True)
    clock, before = time.monotonic(), state["seconds"]
    saved = evaluated = before
    scale = 0.0
    for batch, epoch in batches(pieces, state["step"]):
        progress = state["seconds"] / (minutes * 60)
        if progress >= 1 or (stop_after is not None and state["step"] >= stop_after):
            break
        scale = schedule(progress)
        run.step(batch, scale)
        state["seconds"] = before + time.monotonic() - clock
        if state["step"] % 20 == 0:
            print(run.line(epoch, scale), flush=True)
        if state["seconds"] - evaluated > EVALUATE_SECONDS:
            run.record(scale)
            evaluated = state["seconds"]
        if state["seconds"] - saved > SAVE_SECONDS:
            save(work, run.model, run.optimizers, state)
            saved = state["seconds"]
    if run.losses:
        run.record(scale)
    save(work, run.model, run.optimizers, state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder that holds the packages with the text")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the tokenizer, the curve and the checkpoints"
    )
    parser.add_argument("--minutes", type=float, default=85.0, help="time after which the learning rate is zero")
    parser.add_argument("--stop-after", type=int, default=None, help="stop at this step (for a quick check)")
    parser.add_argument(
        "--bf16", action="store_true", help="bf16 autocast: faster where the CPU has AMX, slower where not"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    train(arguments.sources, arguments.work, arguments.minutes, arguments.stop_after, arguments.bf16)
