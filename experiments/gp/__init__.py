"""Experiments on Gaussian processes."""
