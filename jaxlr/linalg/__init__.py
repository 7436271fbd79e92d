"""Linear algebra that more than one family needs."""

from jaxlr.linalg.dense import (
    matmul as matmul,
    product_svd as product_svd,
    random_orthonormal as random_orthonormal,
)
from jaxlr.linalg.krylov import (
    Estimate as Estimate,
    Lanczos as Lanczos,
    lanczos as lanczos,
    map_draws as map_draws,
    quadrature_trace as quadrature_trace,
    Ritz as Ritz,
    ritz as ritz,
    stochastic_lanczos as stochastic_lanczos,
    stochastic_trace as stochastic_trace,
)
from jaxlr.linalg.randomized import randomized_svd as randomized_svd
from jaxlr.linalg.transform import hadamard_transform as hadamard_transform
