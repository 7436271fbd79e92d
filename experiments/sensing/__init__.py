"""Experiments on matrix sensing."""
