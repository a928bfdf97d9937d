"""Losses between two distributions over the vocabulary, and their gradients in chunks."""
