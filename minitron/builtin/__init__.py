"""A small trained hybrid model and short texts, for the demo and for trying things out."""
