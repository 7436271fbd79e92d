"""Arguments with which functions of `jaxlr.linalg` can be called."""

import jax.numpy as jnp
import jax.random as jr


A = jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.5]))


def product(x):
    return A @ x


EXAMPLES = {
    "cg": lambda: {
        "matvec_fn": product,
        "b": jnp.ones(4),
        "tolerance": 0.1,
        "max_steps": 3,
    },
    "gmres": lambda: {
        "matvec_fn": product,
        "b": jnp.ones(4),
        "tolerance": 0.1,
        "max_steps": 4,
        "restart": 2,
    },
    "lanczos": lambda: {"matvec_fn": product, "start": jnp.ones(4), "num_steps": 2},
    "random_orthonormal": lambda: {"key": jr.key(0), "num_rows": 4, "num_columns": 2},
    "randomized_svd": lambda: {
        "key": jr.key(0),
        "matmul_fn": product,
        "rmatmul_fn": product,
        "shape": (4, 4),
        "rank": 2,
        "num_iterations": 3,
        "num_extra": 1,
    },
    "stochastic_trace": lambda: {
        "key": jr.key(0),
        "matvec_fn": product,
        "size": 4,
        "num_samples": 4,
        "batch_size": 2,
    },
}
