"""Scores, plans and pruning, in files and in memory."""
