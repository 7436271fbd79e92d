"""Linear algebra that more than one family needs."""

from jaxlr.linalg.dense import (
    matmul as matmul,
    product_svd as product_svd,
    random_orthonormal as random_orthonormal,
)
