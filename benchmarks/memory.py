"""Resident memory of work on a mixture of experts, with and without the bound on oneDNN's caches (cli/app.py).

    python benchmarks/memory.py [--steps 300] [--batch-tokens 512] [--precision bf16]

Distils the built-in model into one with seven eighths of its channels, and runs `score` and `eval`, each in a process
with the environment of the command line and in one with oneDNN's own settings.  Resident memory is read after every
step (VmRSS), of commands the most there was (VmHWM).  The table goes into benchmarks/RESULTS.md.  Needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from smollm2 import write_section

from cli.app import ENVIRONMENT
from minitron import builtin
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")
BOUNDED = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_DISTIL = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
from minitron import builtin
from pipeline import Distillation, Pruning, Recipe, ScoringOptions, distill, prune

folder, steps, batch_tokens, precision = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 2**10

@contextmanager
def progress(description, total, unit):
    def advance(amount, note=""):
        if amount == batch_tokens:
            seen.append((resident(), time.monotonic()))
    yield advance

seen = []
scoring = ScoringOptions(samples=8, sequence_length=256, layers="none", dtype="fp32")
prune(Pruning(builtin.MODEL, folder / "student", sizes={"hidden_size": 224}, data=builtin.CALIBRATION, scoring=scoring))
recipe = Recipe(tokens=steps * batch_tokens, batch_tokens=batch_tokens, sequence_length=256, learning_rate=1e-3,
                precision=precision, validate_every=steps, validation_sequences=2)
request = Distillation(student=folder / "student", teacher=builtin.MODEL, data=builtin.DISTILL, output=folder / "out")
found = distill(request, recipe, progress=progress)
print(json.dumps({"resident": [one for one, _ in seen], "seconds": seen[-1][1] - seen[0][1],
                  "loss": found.result.losses[-1]}))
"""

_COMMAND = """
import sys
from cli.app import run
code = run(sys.argv[1:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1], file=sys.stderr)
sys.exit(code)
"""


def environment(bounded: bool) -> dict[str, str]:
    """That of a process which the command line starts, with or without the bound."""
    kept = {name: value for name, value in os.environ.items() if name not in BOUNDED}
    return {name: value for name, value in ENVIRONMENT.items() if bounded or name not in BOUNDED} | kept


def run(code: str, arguments: list[str], bounded: bool) -> tuple[str, str]:
    """What a process prints, on stdout and stderr."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment(bounded), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout, done.stderr


def commands(folder: Path, samples: int) -> dict[str, list[str]]:
    """Name -> a command line of the other commands that run a mixture."""
    sizes = ["--samples", str(samples), "--sequence-length", "512", "--device", "cpu"]
    scores = folder / "scores.safetensors"
    return {
        "`score`": ["score", str(builtin.MODEL), "--data", str(builtin.CALIBRATION), "-o", str(scores), *sizes],
        "`eval`": ["eval", str(builtin.MODEL), "--text", str(builtin.HELDOUT), *sizes, "--no-speed"],
    }


def distilled(steps: int, batch_tokens: int, precision: str, bounded: bool) -> dict[str, Any]:
    """Resident bytes after every step, and the seconds between the first and the last."""
    with tempfile.TemporaryDirectory() as folder:
        told, _ = run(_DISTIL, [folder, str(steps), str(batch_tokens), precision], bounded)
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    print("bounded" if bounded else "free", [one >> 20 for one in found["resident"]], found["seconds"], flush=True)
    return found


def peaks(bounded: bool, samples: int) -> dict[str, int]:
    """The most resident memory of the other commands."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: int(run(_COMMAND, arguments, bounded)[1].split()[-1]) * 2**10
            for name, arguments in commands(Path(folder), samples).items()
        }


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--samples", type=int, default=64, help="sequences for score and eval")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = {
        bounded: distilled(options.steps, options.batch_tokens, options.precision, bounded) for bounded in (True, False)
    }
    most = {bounded: peaks(bounded, options.samples) for bounded in (True, False)}
    points = sorted({step for step in (1, 5, 14, 40, 100, 200, options.steps) if step <= options.steps})
    bound, free = runs[True]["resident"], runs[False]["resident"]
    tenth = max(1, options.steps // 10)
    first, last = mean(bound[tenth : 2 * tenth]), mean(bound[-tenth:])
    lines = [
        "## Memory of a mixture of experts (`benchmarks/memory.py`)",
        "",
        "The built-in model (8 experts, 2 a token) distilled into one of 224 channels in "
        f"{options.precision}, {options.steps} steps of {options.batch_tokens} tokens; resident memory after a step. "
        "*Bounded*: "
        f"{', '.join(f'{name}={ENVIRONMENT[name]}' for name in BOUNDED)}, as the command line sets them.",
        "",
        "| | bounded | oneDNN's own |",
        "|---|--:|--:|",
        *(f"| step {step} | {format_bytes(bound[step - 1])} | {format_bytes(free[step - 1])} |" for step in points),
        f"| loss of the last step | {runs[True]['loss']:.4f} | {runs[False]['loss']:.4f} |",
        f"| seconds for all steps | {runs[True]['seconds']:.0f} | {runs[False]['seconds']:.0f} |",
        *(
            f"| {name}, {options.samples} sequences of 512 tokens, the most | {format_bytes(most[True][name])} | "
            f"{format_bytes(most[False][name])} |"
            for name in most[True]
        ),
        "",
        f"Bounded, the mean of the last tenth of the steps is {last / first:.3f} times that of the second tenth.",
        "",
    ]
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
