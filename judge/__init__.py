"""A judge of answers: which of two is better, by two readings of both (BR-RM, arXiv 2510.23596)."""
