"""Linear algebra that more than one family needs."""

from jaxlr.linalg.dense import (
    matmul as matmul,
    product_svd as product_svd,
    random_orthonormal as random_orthonormal,
)
from jaxlr.linalg.randomized import randomized_svd as randomized_svd
from jaxlr.linalg.transform import hadamard_transform as hadamard_transform
