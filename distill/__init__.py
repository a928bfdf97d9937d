"""How the quality comes back: a smaller model learns the logits of the one it was cut from."""
