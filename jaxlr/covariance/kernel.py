"""Stationary kernels of one variable, their derivatives, and matrices of them.

Letters: tau = x - x', ell a lengthscale, both in the units of x; Q components. Units of
`kernel(tau, order)`: the kernel's over those of x to the power `order`.
"""

import abc
import math
from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxlr.core import checks
from jaxlr.covariance.training import LOG_SCALE


Parameter: TypeAlias = int | float | Num[Array, "..."]
"""A hyper-parameter: a number, or an array that broadcasts or that `vmap` maps."""


class Kernel(eqx.Module):
    """A covariance k(tau) of one variable; a product over axes makes one of several.

    A pytree: hyper-parameters may be traced, mapped and differentiated; they are
    checked where they are known. `k1 + k2`, `k1 * k2` and `2.0 * k` are kernels. All
    but scaled ones and sums have k(0) = 1.

    A kernel of one's own is a subclass with `_derivative(tau, order)`, and with
    `max_order` if it has fewer derivatives than four. What is known of how its fields
    are trained, it says by their metadata: see `jaxlr.covariance.training`.
    """

    __array_ufunc__ = None  # so that NumPy's numbers too leave `2.0 * k` to the kernel

    @property
    def max_order(self) -> int:
        """Order of the highest derivative that exists everywhere, at most 4."""
        return 4

    def __call__(
        self, difference: Num[ArrayLike, "..."], order: int = 0
    ) -> Float[Array, "..."]:
        """The derivative d^order k / d tau^order, in closed form, elementwise.

        Args:
            difference: Differences tau of two points, of any shape.
            order: Order of the derivative, 0 for the value. Static.

        Returns:
            An array of the shape of `difference`; the limit at tau = 0, where gradients
            by hyper-parameters are finite too.

        Raises:
            ValueError: Unless `order` is an integer in 0..`max_order`.
        """
        order = checks.count("order", order, least=0, most=self.max_order)
        dtype = jnp.result_type(float, difference)
        return self._derivative(jnp.asarray(difference, dtype), order)

    @abc.abstractmethod
    def _derivative(self, tau: Array, order: int) -> Array:
        """What `__call__` returns, of checked arguments."""
        ...

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other) -> "Kernel":
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(other, self)

    __rmul__ = __mul__


class _Pair(Kernel):
    first: Kernel
    second: Kernel

    @property
    def max_order(self) -> int:
        """The lower order of the two kernels."""
        return min(self.first.max_order, self.second.max_order)


class Sum(_Pair):
    """k1 + k2, what `+` makes.

    Attributes:
        first: Kernel k1.
        second: Kernel k2.
    """

    def _derivative(self, tau, order):
        return self.first(tau, order) + self.second(tau, order)


class Product(_Pair):
    """k1 k2, what `*` makes.

    Attributes:
        first: Kernel k1.
        second: Kernel k2.
    """

    def _derivative(self, tau, order):
        return leibniz(self.first, self.second, tau, order)


class Scaled(Kernel):
    """variance * k, what `*` makes of a number.

    Attributes:
        variance: Factor >= 0, in the square of the units of what is modeled.
        kernel: Kernel k that it multiplies.
    """

    variance: Parameter = eqx.field(metadata=LOG_SCALE)
    kernel: Kernel

    def __check_init__(self):
        if jnp.ndim(self.variance):
            raise ValueError(
                f"`variance` must be a number, got shape {jnp.shape(self.variance)}."
            )
        checks.positive("variance", self.variance, or_zero=True)

    @property
    def max_order(self) -> int:
        """The order of the kernel that is scaled."""
        return self.kernel.max_order

    def _derivative(self, tau, order):
        return self.variance * self.kernel(tau, order)


def leibniz(f, g, tau, order):
    """The derivative of the product of f and g, each called with tau and an order."""
    total = f(tau, 0) * g(tau, order)
    for i in range(1, order + 1):
        total = total + math.comb(order, i) * f(tau, i) * g(tau, order - i)
    return total
