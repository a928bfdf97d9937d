"""What llama.cpp says beside transformers."""

from pathlib import Path

import numpy as np
import torch

from minitron.model.loading import load_model, load_tokenizer

PROMPT = [5, 17, 42, 200, 9]


def agrees(folder: Path, file: Path, tokens: int = 16) -> None:
    """llama.cpp gives every token the probability that transformers gives it in fp32, and says the same tokens: its KV
    cache is in fp16, and so are some of its products."""
    from benchmarks.llama_cpp_runs import distribution, opened

    model, server, ids = load_model(folder, dtype=torch.float32), opened(file), list(PROMPT)
    (printable,) = load_tokenizer(folder)("a")["input_ids"]
    for _ in range(tokens):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
        found = np.array(distribution(server, ids, len(expected), printable))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=0.02)
        assert found.argmax() == expected.argmax()
        ids.append(int(expected.argmax()))
