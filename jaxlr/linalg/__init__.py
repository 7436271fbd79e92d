"""Linear algebra that more than one family needs."""

from jaxlr.linalg.dense import (
    matmul as matmul,
    product_svd as product_svd,
    random_orthonormal as random_orthonormal,
    total as total,
)
from jaxlr.linalg.iterative import (
    cg as cg,
    cg_steps as cg_steps,
    gmres as gmres,
    IterativeInfo as IterativeInfo,
    judge as judge,
    refine as refine,
)
from jaxlr.linalg.kron import (
    kron_eigh as kron_eigh,
    kron_gaussian as kron_gaussian,
    kron_matvec as kron_matvec,
    kron_pencil as kron_pencil,
    kron_solve as kron_solve,
    KronEigh as KronEigh,
    mode_product as mode_product,
    outer_product as outer_product,
    spectral_filter as spectral_filter,
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
from jaxlr.linalg.toeplitz import toeplitz_matvec as toeplitz_matvec
from jaxlr.linalg.transform import hadamard_transform as hadamard_transform
