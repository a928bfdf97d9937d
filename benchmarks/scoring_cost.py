"""What each part of scoring costs, against a plain pass over the same text: CPU seconds on one thread, and memory.

    python benchmarks/scoring_cost.py [--samples 64] [--repeats 3]

The built-in model reads 64 x 512 tokens of its calibration text in the number format and batches that `minitron score`
uses.  Plain passes, passes with one part of scoring alone and whole runs take turns in one process, and medians of CPU
seconds are compared; the peak of memory is that of a process of its own for each, which runs it once in the environment
of the command line.  The table goes into benchmarks/RESULTS.md.  Needs Linux.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median

import torch
from smollm2 import write_section

from cli.app import ENVIRONMENT
from importance.score import depth
from importance.score.balanced_bases import observing_spaces
from importance.score.calibrate import score_model
from importance.score.calibration_pass import CalibrationPass
from importance.score.covariance import observing_covariance
from importance.score.estimators import ESTIMATORS, find_estimator
from importance.score.experts import observed_experts
from importance.score.moments import Moments
from importance.score.observe import observing
from importance.score.observed_modules import expert_sites
from importance.score.options import LAYER_SAMPLES, ScoringOptions
from importance.score.state_size import observing_states
from importance.score.totals import Batch, Totals
from minitron import builtin
from minitron.arrays import spread
from minitron.measure.text import token_blocks
from minitron.model.backbone import backbone
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512

PLAIN = "a plain pass"
EVERY = "layers, every candidate to the end and nothing kept"
NAMES = {
    PLAIN: "",
    "channels, norms, experts": "with the pass; always",
    "covariance of the stream": "with the pass; always",
    "states": "with the pass; always",
    "projection bases": "with the pass; always",
    "second moments": "with the pass; not with `--no-refit`",
    "surgeon and ridges": "after it, alone; not with `--no-refit`",
    "layers, iterative (the default)": "after it, alone; `--layer-scores iterative`",
    "layers, iterative, 4 sequences": "`--layer-samples 4`",
    "layers, iterative, 2 removed": "`--max-dropped 2`",
    EVERY: "the same scores without what saves passes",
    "all with `--no-refit --layer-scores none`": "",
    "all with `--layer-scores none`": "",
    "all with `--layer-scores fast`": "",
    "all (the default)": "",
}
"""What is measured, and when a run of `minitron score` has it."""

LONG = 15.0
"""What takes more seconds is run once: its own rounds even out what other work on the machine does."""

WHOLE = (PLAIN, "layers, iterative (the default)", *(name for name in NAMES if name.startswith("all ")))
"""Whose peak of memory is measured."""


class Bench:
    """The built-in model and its text; what is measured, by name."""

    def __init__(self, samples: int) -> None:
        torch.set_num_threads(1)
        self.spec = read_spec(builtin.MODEL)
        self.model = load_model(builtin.MODEL, device=torch.device("cpu"))
        tokenizer = load_tokenizer(builtin.MODEL)
        self.blocks = token_blocks(tokenizer, builtin.CALIBRATION, sequence_length=SEQUENCE_LENGTH, samples=samples)
        self.findings: CalibrationPass | None = None

    def runs(self) -> dict[str, Callable[[], object]]:
        """Every row but the surgeon's, which needs a pass before it."""
        spec, model, tokens = self.spec, self.model, self.blocks.size
        parts: list[Callable[[], AbstractContextManager[object]]] = [
            nullcontext,
            lambda: observing(model, spec, Totals()),
            lambda: observing_covariance(model, spec, Totals(), tokens),
            lambda: observing_states(model, spec, Totals()),
            lambda: observing_spaces(model, spec, Totals(), tokens),
            self._moments,
        ]
        found: list[Callable[[], object]] = [lambda part=part: self.read(part) for part in parts]
        found += [
            self.finish,
            self.layers,
            lambda: self.layers(samples=4),
            lambda: self.layers(most=2),
            self._every,
            lambda: self.score(ScoringOptions(estimator="activation", refit=False, layers="none")),
            lambda: self.score(ScoringOptions(layers="none")),
            lambda: self.score(ScoringOptions(layers="fast")),
            lambda: self.score(ScoringOptions()),
        ]
        return dict(zip(NAMES, found, strict=True))

    def prepare(self, name: str, sequences: int | None = None) -> None:
        """What a row needs and what is not measured with it."""
        if name == "surgeon and ridges":
            estimator = find_estimator("best")
            self.findings = CalibrationPass(self.model, self.spec, estimator, tokens=self.blocks.size)
            self.read(self.findings.observing, sequences)

    @torch.inference_mode()
    def read(self, part: Callable[[], AbstractContextManager[object]], sequences: int | None = None) -> None:
        """One pass over the text while a part is on."""
        with part():
            for block in self.blocks[:sequences]:
                backbone(self.model)(input_ids=torch.from_numpy(block[None]), use_cache=False)

    def finish(self) -> None:
        """Scores of what was observed."""
        assert self.findings is not None
        for layer in range(len(self.spec.layers)):
            self.findings.finish(layer)

    def layers(self, samples: int = LAYER_SAMPLES, most: int | None = None) -> None:
        """Layers removed one by one."""
        some = self.blocks[spread(len(self.blocks), samples)]
        depth.removal_scores(self.model, self.spec, some, max_dropped=most)

    def score(self, options: ScoringOptions) -> None:
        """A whole run."""
        score_model(self.model, self.spec, self.blocks, options)

    def _every(self) -> None:
        before = depth.ROUNDING, depth.KEPT
        depth.ROUNDING, depth.KEPT = math.inf, 0  # type: ignore[misc]
        try:
            self.layers()
        finally:
            depth.ROUNDING, depth.KEPT = before  # type: ignore[misc]

    @contextmanager
    def _moments(self) -> Iterator[None]:
        totals, moments = Totals(), Moments(self.spec, self.blocks.size)
        with ExitStack() as entered:
            entered.enter_context(moments.observing(self.model, totals))
            for site in expert_sites(self.spec):
                module, nothing = self.model.get_submodule(site.module), ESTIMATORS["random"]
                entered.enter_context(observed_experts(site, module, totals, Batch(1), nothing, moments))
            yield


def timed(bench: Bench, repeats: int) -> dict[str, list[float]]:
    """Row -> CPU seconds of each run."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    bench.read(nullcontext, 4)
    for turn in range(repeats):
        for name, run in bench.runs().items():
            if turn and found[name][0] > LONG:
                continue
            bench.prepare(name)
            started = time.process_time()
            run()
            found[name].append(time.process_time() - started)
            print(turn, name, f"{found[name][-1]:.2f}", flush=True)
    return found


def peak(name: str, samples: int) -> int:
    """Bytes that a process needed at most which ran one row once."""
    command = [sys.executable, __file__, "--samples", str(samples), "--alone", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT | os.environ)
    return int(done.stdout.split()[-1])


def section(seconds: dict[str, list[float]], peaks: dict[str, int], samples: int, repeats: int) -> str:
    """The section of RESULTS.md."""
    plain = median(seconds[PLAIN])
    lines = [
        "## What each part of scoring costs (`benchmarks/scoring_cost.py`)",
        "",
        f"Built-in model in bf16, {samples} x {SEQUENCE_LENGTH} tokens, one sequence at a time, one thread: CPU "
        f"seconds, medians of {repeats} that took turns (what takes more than {LONG:.0f} s: one run), and the peak "
        "memory of a process that ran the row once. A part with the pass is a pass with that part alone. Layers are "
        f"removed on {LAYER_SAMPLES} of the sequences unless told otherwise.",
        "",
        "| | when | CPU seconds | plain passes | peak memory |",
        "|---|---|--:|--:|--:|",
        *(
            f"| {name} | {when} | {median(seconds[name]):.1f} | {median(seconds[name]) / plain:.2f} | "
            f"{format_bytes(peaks[name]) if name in peaks else ''} |"
            for name, when in NAMES.items()
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", choices=list(NAMES), help="run one row and print the peak of memory")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(options.samples)
    if options.alone:
        bench.prepare(options.alone, 2)
        bench.runs()[options.alone]()
        # Not getrusage: what it tells begins with the memory of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.partition("VmHWM:")[2].split()[0]) * 2**10)
        return
    seconds = timed(bench, options.repeats)
    peaks = {name: peak(name, options.samples) for name in WHOLE}
    text = section(seconds, peaks, options.samples, options.repeats)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
