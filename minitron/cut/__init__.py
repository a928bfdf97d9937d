"""What stays of a model, and cutting it, in files and in memory."""
