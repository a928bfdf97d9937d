"""Memory and speed of a model: weights, caches, states, number formats, engines, GPUs."""
