"""The split of a text into sequences for calibration and sequences for trials: no token is in both.

Shapes: S sequences of T tokens.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError

Blocks = NDArray[np.int64]

WINDOW: Final = 32
"""Tokens in a row by which a passage is known again: books quote a sentence, hardly ever one as long."""

SHARED: Final = 0.25
"""Share of a judging text's windows that may stand in the calibration text: what books repeat, and by far less than
one sequence in two."""

_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)


def split_blocks(blocks: Blocks, judging: int) -> tuple[Blocks, Blocks]:
    """(calibration, judging) of one text's sequences [S, T]: `judging` of them, spread evenly, and all the others.

    Raises MinitronError where nothing would be left to calibrate on."""
    if not 1 <= judging < len(blocks):
        raise MinitronError(
            f"the text holds {len(blocks)} sequences of {blocks.shape[1]} tokens, too few to calibrate "
            f"and to measure candidates on {judging} others; give more text, a smaller "
            "--sequence-length, or --trial-text."
        )
    chosen = np.zeros(len(blocks), dtype=bool)
    # From the middle of each of equal parts: neither the first nor the last passage alone.
    chosen[((np.arange(judging) + 0.5) * len(blocks) / judging).astype(np.int64)] = True
    return blocks[~chosen], blocks[chosen]


def unseen(blocks: Blocks, calibration: Blocks, wanted: int) -> Blocks:
    """At most `wanted` of the sequences `blocks`, spread evenly over those that do not stand among those that
    calibrated; raises MinitronError where all do."""
    width = min(WINDOW, blocks.shape[1], calibration.shape[1])
    known = np.isin(_hashes(blocks, width), _hashes(calibration, width)).mean(1)
    left = blocks[known <= SHARED]
    if not len(left):
        raise MinitronError(
            "the scores were made on all of the calibration text, so that none of it is left to measure candidates on; "
            "give a --trial-text."
        )
    places = np.linspace(0, len(left) - 1, min(wanted, len(left))).round().astype(np.int64)
    return np.asarray(left[places])


def require_apart(judging: Blocks, calibration: Blocks) -> None:
    """Raise MinitronError where the sequences for trials stand, in whole or in part, among those that calibrated, of
    whatever length and place either were cut."""
    found = shared(judging, calibration)
    if found > SHARED:
        raise MinitronError(
            f"{found:.0%} of the text for measuring candidates was also used for calibration, which "
            "biases the choice; give another --trial-text."
        )


def shared(judging: Blocks, calibration: Blocks) -> float:
    """The share of `judging`'s windows of WINDOW tokens, one after the other, that stand anywhere in `calibration`.

    Both are [S, T], of any T; shorter sequences are compared whole."""
    width = min(WINDOW, judging.shape[1], calibration.shape[1])
    here = _hashes(judging, width)[:, ::width]
    return float(np.isin(here, _hashes(calibration, width)).mean())


def _hashes(blocks: Blocks, width: int) -> NDArray[np.uint64]:
    """[S, T - width + 1]: a polynomial hash modulo 2^64 of every window of `width` tokens of each sequence."""
    found = np.zeros((len(blocks), blocks.shape[1] - width + 1), dtype=np.uint64)
    for place in range(width):
        found = found * _FACTOR + blocks[:, place : place + found.shape[1]].astype(np.uint64) + np.uint64(1)
    return found
