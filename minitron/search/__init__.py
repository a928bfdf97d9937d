"""Which architectures fit a budget, and which of them keep the most."""
