"""Text for training: records, tokens, batches."""
