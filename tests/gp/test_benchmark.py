"""The benchmark, at sizes that tell nothing."""

import pytest

from experiments.benchmarks import gp as benchmark
from jaxlr import pde
from jaxlr.core import compat


@pytest.mark.slow
def test_every_part_runs(monkeypatch):
    for name, value in {"SIDE": 8, "LARGE": 12, "HM_STEPS": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    first = pde.BENCHMARKS[benchmark.FIRST].shorten(0.05)
    monkeypatch.setattr(pde, "BENCHMARKS", {benchmark.FIRST: first})
    with compat.x64(True):
        grid, sides = benchmark.of_grid(), benchmark.of_sides()
        gaps, rates = benchmark.of_gaps(), benchmark.of_gp_hm()
        solved = benchmark.of_collocation()
    assert {"matvec", "solve", "likelihood_with_gradients", "memory"} <= set(grid)
    exponent = sides["matvec"]["exponent"]
    assert 1.5**exponent == pytest.approx(sides["matvec"]["ratio"])
    assert gaps["residual"] < 1e-10
    assert 0 < gaps["num_steps"] < 50
    assert rates[benchmark.FIRST]["mib"] > 0
    assert solved[benchmark.FIRST]["error"] < 1e-6
    assert solved[benchmark.FIRST]["holds"]
