"""Quantised checkpoints written: the numbers, their scales, what config.json says of them, and the folder.

grids.py       what numbers there are in a format, and the nearest of them
scales.py      the scales of a matrix: by its largest numbers, or searched for the least error
packing.py     a matrix on its grid as the tensors of a file
wanted.py      what a person asks for
assigned.py    which tensors of a model are kept in which format, and which stay
sections.py    what config.json and the files beside it say
writing.py     the folder, a few matrices at a time
"""
