"""Arguments with which functions of `jaxlr.sensing` can be called."""

import jax.random as jr

from jaxlr import sensing


def problem():
    truth = sensing.low_rank(jr.key(0), (5, 4), 2)
    return sensing.measure(sensing.gaussian(jr.key(1), (5, 4), 30), truth)


EXAMPLES = {
    "low_rank": lambda: {"key": jr.key(0), "shape": (5, 4), "rank": 2},
    "gaussian": lambda: {"key": jr.key(0), "shape": (5, 4), "num_measurements": 6},
    "rank_one": lambda: {"key": jr.key(0), "shape": (5, 4), "num_measurements": 6},
    "init.small_random": lambda: {
        "alpha": 0.1,
        "key": jr.key(0),
        "shape": (5, 4),
        "num_columns": 3,
    },
    "theory.degrees_of_freedom": lambda: {"shape": (5, 4), "rank": 2},
}
