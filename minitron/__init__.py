"""A language model as data: its layers and sizes, its memory, the architectures that fit, and how it is cut."""

__version__ = "0.1.0"
