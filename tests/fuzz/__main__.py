"""`make fuzz`: python -m fuzz --cases 10000 --seed 0 --jobs 2, or one case alone with --only."""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from fuzz.campaign import cleaned, outcomes, sound_inputs, table, told
from fuzz.cases import kind_of
from fuzz.runner import run_case


def main() -> int:
    """Run the campaign; 1 where the law was broken."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", default="", help="those of one kind alone")
    parser.add_argument("--only", type=int, default=None)
    asked = parser.parse_args()

    place = Path(tempfile.mkdtemp(prefix="minitron-fuzz-"))
    logging.disable(logging.CRITICAL)
    if asked.only is not None:
        one = run_case(asked.seed, asked.only, sound_inputs(place), place, keep=True, debug=True)
        print(f"{place}/case-{asked.seed}-{asked.only}\n{' '.join(one.case.arguments)}\n{one.told}\n{told(one)}")
        return int(bool(one.broken))
    began, found = time.monotonic(), []
    sound_inputs(place)
    numbers = [n for n in range(asked.cases) if not asked.kind or kind_of(asked.seed, n) == asked.kind]
    for one in outcomes(asked.seed, numbers, place, asked.jobs):
        found.append(one)
        if one.broken:
            print(told(one), flush=True)
        if len(found) % 500 == 0:
            print(f"{len(found)} tried after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(found))
    print(
        f"seed {asked.seed}: {len(found)} tried in {time.monotonic() - began:.0f} s, "
        f"{sum(bool(one.broken) for one in found)} broke the law"
    )
    cleaned(place)
    return int(any(one.broken for one in found))


if __name__ == "__main__":
    sys.exit(main())
