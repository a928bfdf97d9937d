"""A run of distillation, from a request to the folders that it leaves."""
