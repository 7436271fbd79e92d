"""Benchmarks: scripts that measure ratios in one run and keep them as JSON."""
