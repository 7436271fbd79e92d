"""Matrix sensing: recover a low-rank matrix from linear measurements of it."""

from jaxlr.sensing import (
    operator as operator,
    problem as problem,
    solver as solver,
    theory as theory,
)
from jaxlr.sensing.operator import (
    entries as entries,
    entry_sampling as entry_sampling,
    gaussian as gaussian,
    identity as identity,
    Operator as Operator,
)
from jaxlr.sensing.problem import (
    best_rank as best_rank,
    low_rank as low_rank,
    measure as measure,
    photograph as photograph,
    psnr as psnr,
    relative_error as relative_error,
    SensingProblem as SensingProblem,
)
from jaxlr.sensing.solver import (
    gd as gd,
    GDInfo as GDInfo,
    GDState as GDState,
    rebalance as rebalance,
    Rebalanced as Rebalanced,
    run_rebalanced as run_rebalanced,
)
