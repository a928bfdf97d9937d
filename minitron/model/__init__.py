"""A model as data: axes, families, specs, checkpoints, and loading them."""
