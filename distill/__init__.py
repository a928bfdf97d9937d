"""Distillation: a smaller model learns the logits of its teacher."""
