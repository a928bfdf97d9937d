"""The teacher: how it is loaded, kept in FP8, streamed from disk or read from a cache."""
