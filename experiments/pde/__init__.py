"""Differential equations by Gaussian processes."""
