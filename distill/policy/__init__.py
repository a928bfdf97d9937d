"""On-policy distillation: sequences that the student wrote itself, from the prompts that it is given to who answers."""
