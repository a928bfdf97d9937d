"""Our training loop beside a plain transformers Trainer and TRL's trainers, on the same logit distillation.

    pip install "trl>=1.16"
    python benchmarks/trainers.py --name NAME --model PARENT --student CUT --data TEXT [--steps 4 --tokens 2048]
    python benchmarks/trainers.py --name NAME --hybrid SMOLLM2 --work FOLDER --data TEXT

All train fp32 weights by forward KL on whole logits, AdamW, the same number of tokens a step, in one pass and in others
on request; matmuls under bf16 autocast and the teacher in bf16, or all in fp32 (--dtype fp32).  Each runs in a process
of its own; a step's time is the median of all but the first, and the peak is that of the whole process (VmHWM), models
included, above what it had before them; with --device cuda that of torch.cuda's tensors.  --hybrid makes a pair of
small hybrids with a vocabulary of 131,072 and random weights, with the tokenizer of the folder given.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from smollm2 import write_section
from transformers import NemotronHConfig, NemotronHForCausalLM, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import parse_loss
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.trainer import Trainer
from distill.run.work import Work
from distill.text.data import read_text
from minitron.measure.quality import hidden_states
from minitron.model.loading import DTYPES, load_model, load_tokenizer
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512


def _now() -> float:
    """The time when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self.times.append(_now())

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.times.append(_now())


class Plain(HuggingFaceTrainer):
    """KL over whole logits in the loss of a plain Trainer."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        ids = inputs["input_ids"]
        logits = model(input_ids=ids).logits.float()
        with torch.no_grad():
            log_p = self.teacher(input_ids=ids).logits.float().log_softmax(-1)
        loss = torch.nn.functional.kl_div(logits.log_softmax(-1), log_p, reduction="sum", log_target=True) / ids.numel()
        return (loss, None) if return_outputs else loss


def _sequences(options: argparse.Namespace) -> list[list[int]]:
    text = read_text(
        load_tokenizer(options.model), options.data, sequence_length=SEQUENCE_LENGTH, validation_sequences=1
    )
    return [text.parts[0].sequence(number)[0].tolist() for number in range(options.steps * options.batch)]


def _arguments(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.micro,
        "gradient_accumulation_steps": options.batch // options.micro,
        "max_steps": options.steps,
        "bf16": options.dtype == "bf16",
        "use_cpu": options.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def ours(options: argparse.Namespace, folder: str) -> list[float]:
    """Seconds of each step."""
    text = read_text(
        load_tokenizer(options.model), options.data, sequence_length=SEQUENCE_LENGTH, validation_sequences=1
    )
    recipe = Recipe(
        steps=options.steps,
        sequence_length=SEQUENCE_LENGTH,
        batch_tokens=options.tokens,
        micro_batch=options.micro,
        compile="--compile" in options.way,
        precision=options.dtype,
        validation_sequences=1,
    )
    student = load_model(options.student, dtype=torch.float32, device=torch.device(options.device))
    teacher = load_model(options.model, dtype=DTYPES[options.dtype], device=torch.device(options.device))
    trainer = Trainer(student, teacher, text, recipe, Work(Path(folder)), Processes())
    times = [_now()]
    for _ in range(options.steps):
        trainer.train_step()
        times.append(_now())
    return _differences(times)


def plain(options: argparse.Namespace, folder: str) -> list[float]:
    """Seconds of each step of a transformers Trainer."""
    rows = [{"input_ids": ids, "labels": ids} for ids in _sequences(options)]
    clock = Clock()
    trainer = Plain(
        load_model(options.student, dtype=torch.float32, device=torch.device(options.device)).requires_grad_(True),
        TrainingArguments(**_arguments(options, folder)),
        train_dataset=rows,  # type: ignore[arg-type]
        callbacks=[clock],
    )
    trainer.teacher = load_model(options.model, dtype=DTYPES[options.dtype], device=torch.device(options.device))
    trainer.train()
    return _differences(clock.times)


def gkd(options: argparse.Namespace, folder: str) -> list[float]:
    """Seconds of each step of TRL's GKDTrainer, off-policy (lmbda 0), forward KL (beta 0)."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        # The whole sequence is the answer, save for the one token that a prompt must have.
        return {
            "input_ids": ids,
            "labels": ids,
            "attention_mask": torch.ones_like(ids),
            "prompts": ids[:, :1],
            "prompt_attention_mask": torch.ones_like(ids[:, :1]),
        }

    tokenizer = load_tokenizer(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    clock = Clock()
    rows = [{"input_ids": ids, "messages": [{"role": "user", "content": ""}]} for ids in _sequences(options)]
    trainer = GKDTrainer(
        model=load_model(options.student, dtype=torch.float32, device=torch.device(options.device)).requires_grad_(
            True
        ),
        teacher_model=load_model(options.model, dtype=DTYPES[options.dtype], device=torch.device(options.device)),
        args=GKDConfig(
            **_arguments(options, folder),
            lmbda=0.0,
            beta=0.0,
            max_length=SEQUENCE_LENGTH,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    return _differences(clock.times)


def off_policy(options: argparse.Namespace, folder: str) -> list[float]:
    """Seconds of each step of TRL's DistillationTrainer, forward KL (beta 0), on given text in the place of the answers
    of the student: the first token of a sequence is the prompt."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class OffPolicy(DistillationTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            ids = torch.tensor([row["input_ids"] for row in inputs], device=options.device)
            prompt, completion = ids[:, :1], ids[:, 1:]
            return {
                "prompt_ids": prompt,
                "prompt_mask": torch.ones_like(prompt),
                "completion_ids": completion,
                "completion_mask": torch.ones_like(completion),
                "num_items_in_batch": torch.tensor(completion.numel()),
            }

    tokenizer = load_tokenizer(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    clock = Clock()
    trainer = OffPolicy(
        model=load_model(options.student, dtype=torch.float32, device=torch.device(options.device)).requires_grad_(
            True
        ),
        teacher_model=load_model(options.model, dtype=DTYPES[options.dtype], device=torch.device(options.device)),
        args=DistillationConfig(**_arguments(options, folder), beta=0.0),
        train_dataset=Dataset.from_list([{"input_ids": ids, "prompt": ""} for ids in _sequences(options)]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return _differences(clock.times)


def losses_apart(options: argparse.Namespace) -> float:
    """How far TRL's chunked loss and ours are apart, of its own, on the same states in fp32."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    ids = torch.tensor(_sequences(options)[:1], device=options.device)
    models = [
        load_model(folder, dtype=torch.float32, device=torch.device(options.device))
        for folder in (options.student, options.model)
    ]
    with torch.no_grad():
        mine, theirs = (hidden_states(model, ids) for model in models)
        heads = [model.get_output_embeddings().weight.detach() for model in models]
        other = float(_chunked_divergence_loss(mine, theirs, *heads, torch.ones_like(ids), 0.0)[0])
        own = chunked_loss(
            parse_loss("forward_kl"), mine[0], heads[0], theirs[0], heads[1], LossOptions(divisor=ids.numel())
        )
    return abs(float(own) / other - 1)


WAYS = {
    "minitron": ours,
    "minitron --compile": ours,
    "transformers Trainer": plain,
    "TRL GKDTrainer": gkd,
    "TRL DistillationTrainer": off_policy,
}


def _differences(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _peak(device: str) -> int:
    """Bytes at the highest point until now: of the process on a CPU, of tensors on a GPU."""
    return torch.cuda.max_memory_allocated() if device != "cpu" else _resident("VmHWM")


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def run(way: str, micro: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step and peak memory, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--micro", str(micro)]
    for name in ("name", "model", "student", "data", "steps", "tokens", "device", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return dict(json.loads(found.splitlines()[-1]))


def report(options: argparse.Namespace, found: dict[tuple[str, int], dict[str, float]]) -> str:
    """The section of RESULTS.md."""
    rows, in_bf16 = [], "bf16 autocast over fp32 weights, a teacher in bf16"
    arithmetic = in_bf16 if options.dtype == "bf16" else "student and teacher in fp32"
    for (way, micro), each in found.items():
        own = found["minitron", micro]
        rows.append(
            f"| {way} | {micro} | {options.tokens / each['seconds']:,.0f} | {own['seconds'] / each['seconds']:.2f} | "
            f"{format_bytes(int(each['peak']))} | {each['peak'] / own['peak']:.2f} |"
        )
    return "\n".join(
        [
            f"## Against other training loops: {options.name} (`benchmarks/trainers.py`)",
            "",
            "| | sequences a pass | tokens/s | of minitron's | peak memory | of minitron's |",
            "|---|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"{options.tokens:,} tokens a step, {options.batch} sequences of {SEQUENCE_LENGTH}; {arithmetic}, on "
            f"{options.device}; medians of {options.steps - 1} steps. On the same states in fp32 the chunked loss "
            f"of TRL's DistillationTrainer and ours are {losses_apart(options):.1e} of it apart.",
            "",
        ]
    )


def make_hybrid(folder: Path, tokenizer: Path, intermediate_size: int) -> Path:
    """A hybrid of 131,072 tokens with random weights, unless it is there."""
    if not folder.exists():
        kinds = ["linear_attention", "mlp", "full_attention", "mlp"] * 2
        config = NemotronHConfig(
            vocab_size=131_072, hidden_size=512, layer_types=kinds, num_attention_heads=8, num_key_value_heads=2,
            head_dim=64, intermediate_size=intermediate_size, mamba_num_heads=16, mamba_head_dim=64, n_groups=2,
            ssm_state_size=64, chunk_size=128, max_position_embeddings=4096, tie_word_embeddings=False,
        )  # fmt: skip
        torch.manual_seed(0)
        NemotronHForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        load_tokenizer(tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True, help="of the model, for the heading")
    parser.add_argument("--data", type=Path, required=True)
    for name in ("model", "student", "hybrid", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--passes", type=int, nargs="*", default=[], help="sequences a pass, beside all of a step's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options: Any = parser.parse_args()
    options.batch = options.tokens // SEQUENCE_LENGTH
    torch.set_num_threads(1)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if options.way:
        before = _resident("VmRSS") if options.device == "cpu" else 0
        with tempfile.TemporaryDirectory() as folder:
            times = WAYS[options.way](options, folder)
        print(json.dumps({"seconds": median(times[1:]), "peak": _peak(options.device) - before}))
        return
    if options.hybrid:
        options.model = make_hybrid(options.work / "parent", options.hybrid, 2048)
        options.student = make_hybrid(options.work / "student", options.hybrid, 1536)
    passes = dict.fromkeys((options.batch, *options.passes))
    section = report(options, {(way, micro): run(way, micro, options) for micro in passes for way in WAYS})
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
