"""Experiments on sharpness-aware minimization."""
