"""Arguments with which functions of `jaxlr.core` can be called."""

import jax.numpy as jnp
import jax.random as jr

from jaxlr.core import Solver


HALVING = Solver(lambda key: jnp.ones(()), lambda key, x: (x / 2, x))

EXAMPLES = {
    "loop.run": lambda: {
        "key": jr.key(0),
        "solver": HALVING,
        "num_steps": 3,
        "every": 2,
        "first_step": 0,
    },
    "loop.run_until": lambda: {
        "key": jr.key(0),
        "solver": HALVING,
        "max_steps": 4,
        "tolerance": 0.3,
        "value_fn": lambda info: info,
        "first_step": 0,
    },
    "epoch_batch": lambda: {
        "key": jr.key(0),
        "step": 1,
        "num_examples": 6,
        "batch_size": 2,
    },
    "Uniform": lambda: {"low": 0.0, "high": 1.0, "num": 3, "seed": 1},
}
