"""Candidates cut in memory and measured: the damage model, the sieves, the trials."""
