"""How fast the planner answers, and how many architectures it counts in a second.

    python benchmarks/plan.py

Prints two Markdown tables.  The first: the wall time of a cold `minitron plan` of Nemotron-Nano-12B-v2 beside that of
a Python which only imports numpy, rich and typer, medians of runs that take turns, so that a busy machine slows both.
The second: searches of larger and larger lattices of the same model, each in a process of its own, with the memory
that the process came to at most and that it had before the search.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from minitron.engines.plain import WORKSPACE
from minitron.memory.budget import Budget
from minitron.memory.workload import workload_of
from minitron.model.spec import read_spec
from minitron.search.lattice import LatticeOptions
from minitron.search.search import build_lattice, search
from minitron.units import MiB, format_bytes

MODEL: Final = Path(__file__).parents[1] / "tests/reference/models/Nemotron-Nano-12B-v2.json"
CONTEXT: Final = 128 * 1024
PLAN: Final = ["plan", str(MODEL), "--gpu", "A10G", "--context", "128k"]

PYTHON: Final = [sys.executable, "-c"]
IMPORTS: Final = [*PYTHON, "import numpy, rich, typer"]
COMMAND: Final = [str(Path(sys.executable).with_name("minitron")), *PLAN]

# The same command, which then says on stderr whether it came past torch.
MODULES: Final = [
    *PYTHON,
    f"import sys; sys.argv = {['minitron', *PLAN]!r}\n"
    "from cli.app import main\n"
    "try: main()\n"
    "finally: print('torch' in sys.modules, file=sys.stderr)",
]

_MORE: Final = {"mamba_head_dim": 0.25, "ssm_state": 0.5, "query_head": 0.5}
LATTICES: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "2 million": {"most": _MORE, "multiples": {"hidden": 64}},
    "10 million": {"most": _MORE | {"mamba_head": 0.4}, "multiples": {"hidden": 64, "ffn": 64}},
}
"""name -> what changes about the default lattice."""


def wall(command: list[str]) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def print_cold(runs: int) -> None:
    """The table of cold starts."""
    pairs = [(wall(COMMAND), wall(IMPORTS)) for _ in range(runs)]
    plan, imports = (median(times) for times in zip(*pairs, strict=True))
    told = subprocess.run(MODULES, check=True, capture_output=True, text=True).stderr.split()[-1]
    print(f"| cold start, median of {runs} | seconds |")
    print("|---|---|")
    print(f"| `minitron plan` of the 12B on an A10G | {plan:.2f} |")
    print(f'| `python -c "import numpy, rich, typer"` | {imports:.2f} |')
    print(f"| ratio | {plan / imports:.2f} |")
    print(f"| torch was imported | {'yes' if told == 'True' else 'no'} |")
    print()


def count(name: str) -> dict[str, Any]:
    """Search one of LATTICES in this process, under a budget of 20 GiB."""
    spec = read_spec(MODEL)
    workload = workload_of(spec, CONTEXT)
    before = _peak()
    start = time.perf_counter()
    lattice = build_lattice(spec, workload, options=LatticeOptions(**LATTICES[name]))
    result = search(lattice, workload, Budget(20 * 1024 * MiB, workspace=WORKSPACE))
    seconds = time.perf_counter() - start
    return {
        "points": lattice.points,
        "feasible": result.feasible,
        "front": len(result.front),
        "seconds": seconds,
        "before": before,
        "peak": _peak(),
    }


def _peak() -> int:
    """The most resident bytes of this process so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_searches(runs: int) -> None:
    """The table of searches: footprint, filter, ranking and front, from the options to the result."""
    print(f"| lattice | points | fit | seconds, median of {runs} | points a second | peak memory | before |")
    print("|---|---|---|---|---|---|---|")
    for name in LATTICES:
        command = [sys.executable, __file__, "--count", name]
        found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
        seconds, one = median(run["seconds"] for run in found), found[0]
        print(
            f"| {name} | {one['points']:,} | {one['feasible']:,} | {seconds:.3f} | {one['points'] / seconds:,.0f} | "
            f"{format_bytes(max(run['peak'] for run in found))} | {format_bytes(one['before'])} |"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="how often each is timed")
    parser.add_argument("--count", choices=list(LATTICES), help="only search this lattice, and print it as JSON")
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count(options.count)))
        return
    print_cold(options.runs)
    print_searches(options.runs)


if __name__ == "__main__":
    main()
