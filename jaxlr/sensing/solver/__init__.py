"""Solvers of sensing problems: `solver(problem, *, ...) -> Solver`."""

from jaxlr.sensing.solver._als import (
    alternating_least_squares as alternating_least_squares,
)
from jaxlr.sensing.solver._descent import (
    descend as descend,
    FactorInfo as FactorInfo,
    Factors as Factors,
    FactorState as FactorState,
)
from jaxlr.sensing.solver._gauss_newton import gauss_newton as gauss_newton
from jaxlr.sensing.solver._gd import gd as gd
from jaxlr.sensing.solver._rebalance import (
    gd_rebalanced as gd_rebalanced,
    rebalance as rebalance,
    Rebalanced as Rebalanced,
    run_rebalanced as run_rebalanced,
)
from jaxlr.sensing.solver._scaled import (
    noisy_prec_gd as noisy_prec_gd,
    prec_gd as prec_gd,
    scale_by_gram as scale_by_gram,
    scaled_gd as scaled_gd,
)
from jaxlr.sensing.solver._sketched import (
    alternating_sketched as alternating_sketched,
)
from jaxlr.sensing.solver._soft_impute import (
    soft_impute as soft_impute,
    SoftImputeInfo as SoftImputeInfo,
    SoftImputeState as SoftImputeState,
)
from jaxlr.sensing.solver._subgm import subgm as subgm
