"""Accuracy on benchmarks after a cut and after distillation: teacher, pruned, distilled on more and more tokens.

    python benchmarks/accuracy.py --work runs/accuracy --model PARENT --student CUT --data CORPUS [--data MORE]
        --text HELDOUT [--text OTHER] --tasks arc_easy.yaml,piqa.yaml --tokens 1000448,5001216

Every step is one of minitron's own commands and leaves one artefact in the work folder; what is there is not made
again.  `of the teacher's, above chance` is (accuracy - chance) / (accuracy of the teacher - chance).  The table goes
into benchmarks/RESULTS.md.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results import RESULTS, write_section
from smollm2 import minitron

from minitron.files import read_json, write_json

SEQUENCE_LENGTH = 512
CHANCE = {"arc_easy": 0.25, "piqa": 0.5}
"""Accuracy of a guess, by a part of the task's name."""

TEACHER, PRUNED = "teacher", "pruned"


def distilled(options: argparse.Namespace, tokens: int) -> Path:
    """The student after so many tokens."""
    folder: Path = options.work / f"distilled-{tokens}"
    if not folder.exists():
        data = [part for path in options.data for part in ("--data", path)]
        training = ("--tokens", tokens, "--batch-tokens", options.batch_tokens, "--learning-rate", options.rate)
        spread = ("--sequence-length", SEQUENCE_LENGTH, "--text", options.text[0], "--device", options.device)
        more = options.options.split()
        minitron("distill", options.student, "--teacher", options.model, *data, *training, *spread, *more, "-o", folder)
    return folder


def measured(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """What `minitron eval` says of a model: by text, and the tasks with the first of them."""
    path = options.work / f"measured-{name}.json"
    if not path.exists():
        found: dict[str, Any] = {"texts": []}
        for place, text in enumerate(options.text):
            spread = ("--sequence-length", SEQUENCE_LENGTH, "--samples", options.samples, "--batch-size", 32)
            against = () if name == TEACHER else ("--teacher", options.model)
            tasks = ("--tasks", options.tasks) if place == 0 else ()
            limit = ("--task-limit", options.task_limit) if options.task_limit and place == 0 else ()
            command = ("eval", folder, "--text", text, *spread, *against, *tasks, *limit, "--no-speed")
            document = json.loads(minitron(*command, "--device", options.device, "--json"))
            (result,) = document["results"].values()
            found["texts"].append(result)
            found |= {"tasks": result["tasks"]} if place == 0 else {}
        write_json(path, found)
    return dict(read_json(path))


def accuracy(found: dict[str, Any], task: str) -> float:
    """Length-normalised where the task has it."""
    return float(found["tasks"][task].get("acc_norm", found["tasks"][task].get("acc")))


def chance(task: str) -> float:
    """Accuracy of a guess."""
    return next(share for name, share in CHANCE.items() if name in task)


def titles(texts: list[Path]) -> list[str]:
    """What tells the texts apart: their names, or as much of their paths as that takes."""
    lengths = range(1, max(len(text.parts) for text in texts))
    length = next((n for n in lengths if len({text.parts[-n:] for text in texts}) == len(texts)), 0)
    return [str(Path(*text.parts[-length:])) for text in texts]


def section(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    tasks = list(found[TEACHER]["tasks"])
    columns = [f"perplexity, KL: {title}" for title in titles(options.text)]
    columns += [part for task in tasks for part in (task, "of the teacher's, above chance")]
    lines = [f"## {options.title}", "", "| model | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for name, one in found.items():
        cells = [f"{t['perplexity']:.2f}, {t.get('kl_to_teacher') or 0:.4f}" for t in one["texts"]]
        for task in tasks:
            least, best = chance(task), accuracy(found[TEACHER], task)
            mine = accuracy(one, task)
            cells += [f"{mine:.4f}", f"{(mine - least) / (best - least):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"`{options.student.name}` of `{options.model.name}`; distilled with `minitron distill --batch-tokens "
        f"{options.batch_tokens} --learning-rate {options.rate} {options.options}`".rstrip()
        + f" on {', '.join(path.name for path in options.data)}, {options.device}; texts: {options.samples} sequences "
        f"of {SEQUENCE_LENGTH} tokens; accuracies by lm-eval, length-normalised.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("work", "model", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True, help="text to distil on")
    parser.add_argument("--text", type=Path, action="append", required=True, help="held-out text")
    parser.add_argument("--tasks", required=True, help="of lm-eval")
    parser.add_argument("--task-limit", type=int, help="items of a task")
    parser.add_argument("--tokens", default="1000448", help="one or more, separated by commas")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rate", default="3e-4", help="the highest")
    parser.add_argument("--samples", type=int, default=64, help="held-out sequences")
    parser.add_argument("--options", default="", help="more of `minitron distill`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--title", default="Accuracy after a cut and after distillation (`benchmarks/accuracy.py`)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> dict[str, Any]:
        known = {TEACHER: options.model, PRUNED: options.student}
        return measured(options, name, known[name] if name in known else distilled(options, int(name)))

    names = [TEACHER, PRUNED, *options.tokens.split(",")]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    told = {
        name if name in (TEACHER, PRUNED) else f"distilled, {int(name):,} tokens": one for name, one in found.items()
    }
    text = section(options, told)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
