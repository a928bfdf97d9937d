"""A language model as data: what it holds, what it costs, what fits, how it is cut."""

__version__ = "0.1.0"
