"""How good and how fast a checkpoint is."""
