"""Covariance functions of one variable, their derivatives, and matrices of them."""

from jaxlr.covariance.kernel import (
    Kernel as Kernel,
    Parameter as Parameter,
    Product as Product,
    Scaled as Scaled,
    Sum as Sum,
)
from jaxlr.covariance.matrix import (
    check_scalar as check_scalar,
    gram as gram,
    regular_spacing as regular_spacing,
    toeplitz_column as toeplitz_column,
)
from jaxlr.covariance.stationary import (
    Matern as Matern,
    Periodic as Periodic,
    RationalQuadratic as RationalQuadratic,
    SpectralMixture as SpectralMixture,
    SquaredExponential as SquaredExponential,
)
from jaxlr.covariance.training import (
    constrain as constrain,
    HELD as HELD,
    hold as hold,
    LOG_SCALE as LOG_SCALE,
    unconstrain as unconstrain,
)
