"""What a student does on its own answers: KL to the teacher there, and whether both write the same.

    python benchmarks/on_policy.py --model PARENT --text HELDOUT --student NAME=FOLDER [--student ...] --out FILE

Prompts are the first halves of held-out sequences; each student goes on greedily for as many tokens again.  KL of the
teacher to the student, and of the student to the teacher (what on-policy distillation lowers), in nats a token of those
answers; beside them the KL on the text itself, and the share of answer tokens that the teacher writes too, when it goes
on from the same prompt.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitron import builtin
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer

SEQUENCE_LENGTH = 512
PROMPT = SEQUENCE_LENGTH // 2


@torch.inference_mode()
def written(model: Any, ids: Tensor) -> Tensor:
    """Prompts and what the model finds likeliest, [B, SEQUENCE_LENGTH]."""
    more = SEQUENCE_LENGTH - PROMPT
    # An end of text would make answers of different lengths.
    answer = model.generate(ids[:, :PROMPT], max_new_tokens=more, min_new_tokens=more, do_sample=False)
    return Tensor(answer) if not isinstance(answer, Tensor) else answer


@torch.inference_mode()
def divergences(teacher: Any, student: Any, ids: Tensor) -> tuple[float, float]:
    """KL of teacher to student and of student to teacher, at the tokens after the prompt."""
    log_p, log_q = (
        model(input_ids=ids, use_cache=False).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)
        for model in (teacher, student)
    )
    forward = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return float(forward), float((log_q.exp() * (log_q - log_p)).sum(-1).mean())


def measured(teacher: Any, student: Any, ids: Tensor) -> dict[str, float]:
    """The numbers of one student."""
    theirs, own = written(teacher, ids), written(student, ids)
    same = (theirs[:, PROMPT:] == own[:, PROMPT:]).float().mean()
    parts = {"text": ids, "own": own}
    found = {
        name: np.mean([divergences(teacher, student, one[None]) for one in part], 0) for name, part in parts.items()
    }
    return {
        "text_kl": float(found["text"][0]),
        "own_kl": float(found["own"][0]),
        "own_reverse_kl": float(found["own"][1]),
        "same_tokens": float(same),
    }


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=builtin.MODEL)
    parser.add_argument("--text", type=Path, default=builtin.HELDOUT)
    parser.add_argument("--student", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = torch.device(options.device)
    blocks = token_blocks(
        load_tokenizer(options.model), options.text, sequence_length=SEQUENCE_LENGTH, samples=options.samples
    )
    ids = torch.from_numpy(blocks).to(place)
    teacher, found = load_model(options.model, dtype=torch.float32, device=place), dict[str, Any]()
    for given in options.student:
        name, _, folder = given.partition("=")
        student = load_model(Path(folder), dtype=torch.float32, device=place)
        found[name] = measured(teacher, student, ids)
        print(f"{name}: {found[name]}", flush=True)
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
