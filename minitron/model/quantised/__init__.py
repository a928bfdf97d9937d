"""Quantised checkpoints: what a config says of them, how their bytes lie, and how they become bf16 again.

layout.py        the bytes of a matrix: bits, scales of groups, rows and blocks, zero points
modules.py       which tensors an entry of a config's list means
quantisation.py  what a config says, as groups of modules with one scheme each
methods.py       quant_method -> how that method's config is read
"""

from minitron.model.quantised.methods import quantisation_of, with_companions
from minitron.model.quantised.quantisation import Quantisation, plain_config
from minitron.model.quantised.source import ORIGINAL, Source

__all__ = ["ORIGINAL", "Quantisation", "Source", "plain_config", "quantisation_of", "with_companions"]
