"""Arguments with which functions of `jaxlr.sharpness` can be called."""

import jax.numpy as jnp
import jax.random as jr


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


BATCH = (jnp.eye(4, 2),)
GIVEN = {"fun": loss, "params": jnp.ones(2)}
DRAWN = GIVEN | {"key": jr.key(0), "args": BATCH}
EXAMPLES = {
    "m_sharpness": lambda: (
        GIVEN | {"batch": BATCH, "rho": 0.1, "num_shards": 2, "num_steps": 2}
    ),
    "lambda_max": lambda: DRAWN | {"num_steps": 2},
    "average_sharpness": lambda: (
        DRAWN | {"rho": 0.1, "num_samples": 4, "batch_size": 2}
    ),
    "hessian_trace": lambda: DRAWN | {"num_samples": 4, "batch_size": 2},
}
