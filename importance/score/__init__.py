"""Importance scores from a pass over calibration text."""
