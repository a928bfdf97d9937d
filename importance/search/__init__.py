"""The search by measurement: the damage model, the sieves and the trials of candidates cut in memory."""
