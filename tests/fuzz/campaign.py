"""Many cases, on several processes that have everything imported, and a table of what came of them."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from fuzz import options
from fuzz.corpus import make_corpus
from fuzz.runner import Outcome, run_case


def sound_inputs(place: Path) -> Path:
    """The corpus, made in `place` where it is not there; making it imports all that the cases need."""
    sound = place / "corpus"
    if not sound.exists():
        make_corpus(sound)
    options.SOUND[:] = [sound]
    return sound


def outcomes(seed: int, numbers: Iterable[int], place: Path, jobs: int = 1) -> Iterator[Outcome]:
    """What came of every case, as they end."""
    run = partial(run_case, seed, sound=sound_inputs(place), place=place)
    if jobs == 1:
        yield from map(run, numbers)
        return
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        waiting = {pool.submit(run, number) for number in numbers}
        for done in as_completed(waiting):
            waiting.remove(done)
            yield done.result()


def table(found: list[Outcome]) -> str:
    """Tried, exit codes and violations by kind."""
    kinds = sorted({one.case.kind for one in found})
    codes = sorted({one.code for one in found}, key=abs)
    rows = [["kind", "tried", *(f"exit {code}" for code in codes), "violations"]]
    for kind in [*kinds, "all"]:
        own = [one for one in found if kind in (one.case.kind, "all")]
        exits = Counter(one.code for one in own)
        violations = Counter(word for one in own for word in one.broken)
        told = ", ".join(f"{count} {word}" for word, count in violations.most_common()) or "0"
        rows.append([kind, str(len(own)), *(str(exits[code]) for code in codes), told])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def told(one: Outcome) -> str:
    """A violation: what, how to run it again, and what the command said."""
    case = one.case
    lines = [
        f"{', '.join(one.broken)}: {case.kind}, {case.what} (exit {one.code}, {one.seconds:.1f} s)",
        f"    again: make fuzz SEED={case.seed} ONLY={case.number}",
        f"    minitron {' '.join(case.arguments)!r:.300}",
        *(f"    {line!r:.600}" for line in one.told.strip().splitlines()[-3:]),
    ]
    return "\n".join(lines)


def cleaned(place: Path) -> None:
    """Remove what a campaign made."""
    shutil.rmtree(place, ignore_errors=True)
