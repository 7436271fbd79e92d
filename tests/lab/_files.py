"""Files of experiments, as users write them, for tests of the command line."""

from pathlib import Path


MINE = '''"""Does a power decay?"""
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxlr.core import Claim, Experiment


class HParams(eqx.Module):
    eta: float = 0.5
    """Step size [1/L]."""
    beta: float = 0.25
    """Something beside it."""
    seed: int = eqx.field(static=True, default=3)
    """Not the root's."""
    method: Literal["gd", "sgd"] = eqx.field(static=True, default="gd")
    num_steps: int = eqx.field(static=True, default=20)
    use_noise: bool = eqx.field(static=True, default=True)
    sizes: tuple = eqx.field(static=True, default=(1, 2))
    other: Any = eqx.field(static=True, default=None)


def run(key, hp):
    if hp.num_steps > 1000:
        raise ValueError(f"`num_steps` is at most 1000, got {hp.num_steps}.")
    error = (1 - hp.eta) ** jnp.arange(hp.num_steps) + 1e-3 * jr.uniform(key)
    return {"error": error, "last": error[-1], "beta_out": hp.beta + 0 * error[-1]}


def claims(results):
    return [Claim("it decays", results["last"], high=0.1, source="calculus")]


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"eta": (0.25, 0.5), "method": ("gd", "sgd")},
    num_seeds=2,
    smoke={"hparams": HParams(num_steps=10), "num_seeds": 1},
    claims=claims,
)
'''
LONG = '''"""A long run."""
import equinox as eqx
import jax.numpy as jnp
from jaxlr.core import Experiment, Solver


class HParams(eqx.Module):
    eta: float = 0.5


def solver(key, hp):
    return Solver(lambda key: jnp.ones(()), lambda key, x: (x * hp.eta, {"x": x}))


EXPERIMENT = Experiment(solver=solver, num_steps=8, hparams=HParams())
'''


def only_run(name="mine"):
    """The one run directory of an experiment, in this folder."""
    (directory,) = (Path("runs") / name).iterdir()
    return directory
