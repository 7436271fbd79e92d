"""Computations that call the host, and their digests."""

import dataclasses

import jax
import numpy as np

from jaxlr.lab import fingerprint


def digest(fn, *args):
    """Of what `fn` traces to, at a number."""
    return fingerprint.of(jax.make_jaxpr(fn)(*(args or (1.0,)))).digest


def host(callback, make=jax.pure_callback, **settings):
    """A computation that calls the host."""
    shape = jax.ShapeDtypeStruct((), np.float32)
    return lambda x: make(callback, shape, x, **settings)


def told(callback):
    """A computation that tells the host something."""
    return lambda x: jax.debug.callback(callback, x)


def captured(value):
    """Code that would not run: what it captures counts."""
    return lambda x: (value, x)[1]


def defaults(value):
    def callback(x, scale=value, *, shift=value):
        return np.float32(scale * x + shift)

    return callback


@dataclasses.dataclass(eq=False)
class Scaler:
    scale: float = 2.0

    def __call__(self, x):
        return np.float32(self.scale * x)

    def twice(self, x):
        return self(self(x))


@dataclasses.dataclass(frozen=True)
class Settings:
    debug_info: bool
