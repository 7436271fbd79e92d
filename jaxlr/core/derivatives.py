"""Derivatives that must not be taken."""

import functools as ft
from typing import TypeVar

import jax


T = TypeVar("T")


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def refuse(message: str, x: object, out: T) -> T:
    """`out`, made of x, which cannot be differentiated by way of x.

    Args:
        message: Of the error. Static.
        x: What `out` was made of, a pytree.
        out: A pytree made without derivatives, or x itself.

    Raises:
        ValueError: With this message, where `out` is differentiated with respect to
            something that x depends on.
    """
    return out


@refuse.defjvp
def _(message, primals, tangents):
    raise ValueError(message)
