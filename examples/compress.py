"""The Python interface: compress and distil the built-in model, much as `minitron demo` does.

    python examples/compress.py --output runs/example [--tokens 150000]

Each step is one function of `pipeline`.  `pipeline.compress` does them all, measures candidates before it chooses, and
goes on after a stop.
"""

import argparse
from pathlib import Path

from minitron import builtin
from pipeline import (
    Compressed,
    Compression,
    EvaluationOptions,
    Planning,
    Recipe,
    ScoringOptions,
    Searching,
    compress,
    inspect,
)

SEQUENCE_LENGTH = 512


def request_of(output: Path, tokens: int, samples: int, evaluate: int) -> Compression:
    """Two thirds of the bytes of the weights, for all; in fp32, which a processor multiplies faster."""
    batch_tokens = min(4096, tokens)
    return Compression(
        model=builtin.MODEL,
        output=output,
        data=builtin.DISTILL,
        calibration=builtin.CALIBRATION,
        heldout=builtin.HELDOUT,
        planning=Planning(budget=inspect(builtin.MODEL).weight_bytes * 2 // 3, context=2048),
        searching=Searching(evaluate=evaluate, combinations=16, trial_samples=8, finalists=2),
        scoring=ScoringOptions(
            samples=samples, sequence_length=SEQUENCE_LENGTH, batch_size=4, layer_samples=2, dtype="fp32"
        ),
        recipe=Recipe(
            tokens=tokens,
            sequence_length=SEQUENCE_LENGTH,
            batch_tokens=batch_tokens // SEQUENCE_LENGTH * SEQUENCE_LENGTH,
            learning_rate=1e-3,
            precision="fp32",
            validation_sequences=min(16, samples),
        ),
        evaluation=EvaluationOptions(
            sequence_length=SEQUENCE_LENGTH, samples=samples, batch_size=4, dtype="fp32", speed=False
        ),
    )


def main(arguments: list[str] | None = None) -> Compressed:
    """Parse the command line, compress, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the run folder")
    parser.add_argument("--tokens", type=int, default=150_000, help="to distil on")
    parser.add_argument("--samples", type=int, default=64, help="sequences to score on, and to evaluate on")
    parser.add_argument("--evaluate", type=int, default=12, help="candidates to measure; 0 ranks by scores alone")
    options = parser.parse_args(arguments)
    request = request_of(options.output, options.tokens, options.samples, options.evaluate)
    found = compress(request, note=print)
    for name, model in found.models.items():
        print(f"{name}: {model['parameters']:,} parameters, KL to the teacher {model['kl_to_teacher']:.4f} nats")
    print(f"The compressed model: {found.distilled}")
    return found


if __name__ == "__main__":
    main()
