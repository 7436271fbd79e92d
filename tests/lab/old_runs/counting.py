"""Exact in any arithmetic: what `format1_*` of this folder hold. Must stay as it is."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jaxlr.core import Experiment, Solver


class HParams(eqx.Module):
    """One cell."""

    rate: float = 0.5
    """Growth of a step."""
    size: int = eqx.field(static=True, default=2)
    """Length of the vector."""


class Metrics(NamedTuple):
    """What the closed one returns."""

    total: Any
    """Value at the start of every step."""
    last: Any
    """The vector at the end."""
    count: Any
    """Number of entries."""


class Info(NamedTuple):
    """What the long one returns every step."""

    total: Any
    """Sum of the state."""
    word: Any
    """First word of the key in the state."""


class State(NamedTuple):
    """Of the long one: it carries a typed key of its own."""

    x: Any
    key: Any


def run(key, hparams):
    """Sums of multiples of the rate."""

    def step(x, t):
        return x + hparams.rate * t, x

    last, total = jax.lax.scan(step, jnp.zeros(hparams.size), jnp.arange(8.0))
    return Metrics(total[:, 0], last, jnp.asarray(hparams.size))


def solver(key, hparams):
    """The same, a step at a time."""

    def init(key):
        return State(jnp.zeros(hparams.size), jr.key(7))

    def step(key, state):
        word = jr.key_data(state.key)[-1]
        info = Info(jnp.sum(state.x), word)
        return State(state.x + hparams.rate, state.key), info

    return Solver(init, step)


AXES = {"rate": (0.25, 0.5, 2.0), "size": (2, 3)}
CLOSED = Experiment(name="counting", run=run, hparams=HParams(), axes=AXES, num_seeds=2)
LONG = Experiment(
    name="counting.long",
    solver=solver,
    num_steps=8,
    hparams=HParams(),
    axes=AXES,
    num_seeds=2,
    checkpoint_seconds=0,
)
EXPERIMENT = CLOSED
