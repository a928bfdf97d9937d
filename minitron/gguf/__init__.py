"""GGUF files, which llama.cpp runs: a checkpoint written as one, in llama.cpp's own types."""
