"""Arguments with which functions of `jaxlr.ssm` can be called."""

import jax.numpy as jnp


LINE = {"lam": -jnp.ones((1, 2)), "b": jnp.ones((1, 2)), "c": jnp.ones((1, 2))}
EXAMPLES = {
    "hippo_legs": lambda: {"n": 4},
    "s4d": lambda: {"kind": "random", "n": 4, "seed": 1},
    "kernel": lambda: LINE | {"dt": 0.1, "length": 5},
}
