"""What each part of a model loses in each format, measured, beside what the prior of `plan --formats` says.

    python benchmarks/format_prior.py --work runs/prior [--formats int8,int4,nvfp4a16]
    python benchmarks/format_prior.py --work runs/prior-smollm2 --model PARENT --data TRAIN --text HELDOUT ...

One part at a time is rounded with feedback, all others stay as they are; KL to the model on held-out text.  The prior
weighs a part by the numbers that a token uses of it (minitron.search.format_choices); by all that are stored it would
weigh routed experts by those that are idle too.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
from typing import Any

import numpy as np
from joint import Joint
from search import SEQUENCE_LENGTH, bench_options
from smollm2 import write_section

from importance.search.sieves import planner
from minitron.files import read_json, write_json
from minitron.search.format_choices import EXPONENT
from minitron.search.offered_formats import form_of, parts_of


def measured(bench: Joint, form: str) -> dict[str, float]:
    """Part -> KL on the held-out text with that part alone in a format."""
    path = bench.work / f"parts-{form}.json"
    if not path.exists():
        parts, every = parts_of(bench.spec), tuple(range(len(bench.spec.layers)))
        plan = planner(bench.trials_on(bench.judging, None), bench.scores(0, rival=False))
        kl = {part: bench.judged(plan({}, every, dict.fromkeys(parts, "bf16") | {part: form}))["kl"] for part in parts}
        write_json(path, kl)
    return dict(read_json(path))


def constants(bench: Joint, form: str) -> dict[str, tuple[float, float, float]]:
    """Part -> (KL, KL / (active share x D), KL / (stored share x D)), D the format's relative error.

    Where a prior is right, its column says the same number for all parts."""
    spec, found = bench.spec, measured(bench, form)
    parameters = spec.parameters()
    active, stored = parameters.active_by_component, parameters.by_component
    error = form_of(form).relative_error
    return {
        part: (
            kl,
            kl / error / (active[part] / sum(active[one] for one in found)),
            kl / error / (stored[part] / sum(stored[one] for one in found)),
        )
        for part, kl in found.items()
    }


def _ratio(numbers: Any) -> str:
    logs = np.log(np.array(list(numbers)))
    return f"{np.exp(logs.std()):.2f}"


def section(bench: Joint, title: str) -> str:
    """The section of RESULTS.md."""
    lines = [f"## {title}", "", "| format | part | KL | KL / (active share x D) | KL / (stored share x D) |"]
    lines.append("|---|---|--:|--:|--:|")
    for form in bench.options.formats.split(","):
        found = constants(bench, form)
        lines += [f"| {form} | {part} | {kl:.5f} | {a:.2f} | {s:.2f} |" for part, (kl, a, s) in found.items()]
        spread = [_ratio(one[place] for one in found.values()) for place in (1, 2)]
        lines.append(f"| {form} | spread of the parts | | x {spread[0]} | x {spread[1]} |")
    lines += [
        "",
        f"`{bench.options.model.name}`, KL to the model in nats on {bench.heldout.size:,} held-out tokens, one part in "
        f"the format at a time. D is the relative error of the format, its loss a share of D^(1 / {EXPONENT:g}) of the "
        f"numbers. {bench.options.calibration} sequences of {SEQUENCE_LENGTH} tokens to score on. The spread is the "
        "factor of one standard deviation of the logarithms: 1 where the prior is right.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    bench_options(parser)
    parser.add_argument(
        "--title", default="What parts lose in formats: the built-in model (`benchmarks/format_prior.py`)"
    )
    parser.add_argument("--formats", default="int8,int4,nvfp4a16")
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--most", type=str, action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Joint(options)
    write_section(options.results, section(bench, options.title))


if __name__ == "__main__":
    main()
