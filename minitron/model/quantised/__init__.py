"""Quantised checkpoints: what a config says of them.

quantisation.py  what a config says, as groups of modules with one scheme each
modules.py       which tensors an entry of a config's list means
methods.py       quant_method -> how that method's config is read (floats.py, integers.py)
schemes.py       the schemes, as files hold them (their bytes: minitron.model.matrix_layout)
source.py        what a spec knows of the checkpoint that it was read from
"""

from minitron.model.quantised.methods import quantisation_of, with_companions
from minitron.model.quantised.quantisation import Quantisation, plain_config
from minitron.model.quantised.source import ORIGINAL, Source

__all__ = ["ORIGINAL", "Quantisation", "Source", "plain_config", "quantisation_of", "with_companions"]
