"""A real, small hybrid Mamba-Transformer-MoE language model that ships with the package, and text to work on it with.

PROVENANCE.md beside this file says what it was made from, how, and how good it is.
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODEL = _HERE / "model"
"""Hugging Face folder of the model: NemotronH, 6.7 million parameters, bf16, byte-level BPE of 2,048 tokens."""

CALIBRATION = _HERE / "text" / "calibration.txt"
"""About 400 KB the model was trained on, to score parts with; no passage is in DISTILL."""

DISTILL = _HERE / "text" / "distill.txt"
"""About 2 MB the model was trained on, to distil on."""

HELDOUT = _HERE / "text" / "heldout.txt"
"""About 130 KB from whole chapters and scenes the model never saw, to measure with."""
