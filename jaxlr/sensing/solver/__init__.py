"""Solvers of sensing problems: `solver(problem, *, ...) -> Solver`."""

from jaxlr.sensing.solver._gd import gd as gd, GDInfo as GDInfo, GDState as GDState
from jaxlr.sensing.solver._rebalance import (
    rebalance as rebalance,
    Rebalanced as Rebalanced,
    run_rebalanced as run_rebalanced,
)
