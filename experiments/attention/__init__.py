"""Experiments on tensor attention."""
