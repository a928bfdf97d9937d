"""What a model takes and how fast it serves: weights, caches, states, engines, GPUs."""
