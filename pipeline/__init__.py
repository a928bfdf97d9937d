"""The chain from a checkpoint to a recovered smaller one."""
