"""Matrix sensing: recover a low-rank matrix from linear measurements of it."""

from jaxlr.sensing import (
    init as init,
    operator as operator,
    problem as problem,
    sharded as sharded,
    solver as solver,
    theory as theory,
)
from jaxlr.sensing.operator import (
    dct as dct,
    entries as entries,
    entry_sampling as entry_sampling,
    gaussian as gaussian,
    hadamard as hadamard,
    identity as identity,
    kronecker as kronecker,
    Operator as Operator,
    rademacher as rademacher,
    rank_one as rank_one,
    residual_adjoint as residual_adjoint,
    residual_gradient as residual_gradient,
    symmetric_gaussian as symmetric_gaussian,
)
from jaxlr.sensing.problem import (
    add_noise as add_noise,
    add_outliers as add_outliers,
    best_rank as best_rank,
    low_rank as low_rank,
    measure as measure,
    photograph as photograph,
    psnr as psnr,
    quantize as quantize,
    Quantizer as Quantizer,
    relative_error as relative_error,
    SensingProblem as SensingProblem,
)
from jaxlr.sensing.sharded import run_sharded as run_sharded
from jaxlr.sensing.solver import (
    descend as descend,
    FactorInfo as FactorInfo,
    Factors as Factors,
    FactorState as FactorState,
    gd as gd,
    gd_rebalanced as gd_rebalanced,
    noisy_prec_gd as noisy_prec_gd,
    prec_gd as prec_gd,
    rebalance as rebalance,
    Rebalanced as Rebalanced,
    run_rebalanced as run_rebalanced,
    scale_by_gram as scale_by_gram,
    scaled_gd as scaled_gd,
    subgm as subgm,
)
