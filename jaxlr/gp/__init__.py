"""Gaussian processes on grids: kernels, Kronecker solvers, differential equations."""

from jaxlr.gp.collocation import (
    Collocation as Collocation,
    collocation_solve as collocation_solve,
    newton_collocation as newton_collocation,
)
from jaxlr.gp.coregionalization import Coregionalization as Coregionalization
from jaxlr.gp.data import carbon_dioxide as carbon_dioxide, Record as Record
from jaxlr.gp.gp_hm import (
    gp_hm_init as gp_hm_init,
    gp_hm_log_joint as gp_hm_log_joint,
    gp_hm_predict as gp_hm_predict,
    GPHM as GPHM,
)
from jaxlr.gp.grid import Evidence as Evidence, GridGP as GridGP, GridInfo as GridInfo
from jaxlr.gp.kernel import (
    gram as gram,
    Kernel as Kernel,
    Matern as Matern,
    Periodic as Periodic,
    Product as Product,
    RationalQuadratic as RationalQuadratic,
    regular_spacing as regular_spacing,
    Scaled as Scaled,
    SpectralMixture as SpectralMixture,
    SquaredExponential as SquaredExponential,
    Sum as Sum,
    toeplitz_column as toeplitz_column,
)
from jaxlr.gp.posterior import Posterior as Posterior, Prediction as Prediction
from jaxlr.gp.problem import (
    Benchmark as Benchmark,
    BENCHMARKS as BENCHMARKS,
    Equation as Equation,
    Face as Face,
    manufactured as manufactured,
    Problem as Problem,
    Unknown as Unknown,
)
from jaxlr.gp.training import fit as fit, Fitted as Fitted
