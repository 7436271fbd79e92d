"""Stationary kernels of one variable, their derivatives, and matrices of them.

Letters: tau = x - x', ell a lengthscale, both in the units of x; Q components. Units of
`kernel(tau, order)`: the kernel's over those of x to the power `order`.
"""

import abc
import math
from typing import Literal, TypeAlias

import equinox as eqx
import jax
from jax.core import Tracer
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num
import numpy as np

from jaxlr.core import errors


Parameter: TypeAlias = int | float | Num[Array, "..."]
"""A hyper-parameter: a number, or an array that broadcasts or that `vmap` maps."""


class Kernel(eqx.Module):
    """A covariance k(tau) of one variable; a product over axes makes one of several.

    A pytree: hyper-parameters may be traced, mapped and differentiated; they are
    checked where they are known. `k1 + k2`, `k1 * k2` and `2.0 * k` are kernels. All
    but scaled ones and sums have k(0) = 1.
    """

    __array_ufunc__ = None  # so that NumPy's numbers too leave `2.0 * k` to the kernel

    @property
    def max_order(self) -> int:
        """The highest derivative that exists everywhere, or 4."""
        return 4

    def __call__(
        self, difference: Num[ArrayLike, "..."], order: int = 0
    ) -> Float[Array, "..."]:
        """The derivative d^order k / d tau^order, in closed form, elementwise.

        Args:
            difference: tau.
            order: 0 for the value. Static.

        Returns:
            An array of the shape of `difference`; the limit at tau = 0, where gradients
            by hyper-parameters are finite too.

        Raises:
            ValueError: Unless `order` is an integer in 0..`max_order`.
        """
        if not isinstance(order, int) or not 0 <= order <= self.max_order:
            raise ValueError(
                f"`order` must be in 0..{self.max_order}, the derivatives that "
                f"{type(self).__name__} has, got {order!r}."
            )
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


class SquaredExponential(Kernel):
    """exp(-tau^2 / (2 ell^2)).

    Attributes:
        lengthscale: ell > 0.
    """

    lengthscale: Parameter

    def __check_init__(self):
        _check_positive(lengthscale=self.lengthscale)

    def _derivative(self, tau, order):
        t = tau / self.lengthscale
        f = jnp.exp(-(t**2) / 2)
        slopes = [f, -f, f, -f, f]
        return _of_half_square(t, slopes, order) / self.lengthscale**order


class RationalQuadratic(Kernel):
    """(1 + tau^2 / (2 alpha ell^2))^-alpha: squared exponentials of many lengthscales.

    Attributes:
        lengthscale: ell > 0.
        alpha: > 0; the larger, the closer they are to each other.
    """

    lengthscale: Parameter
    alpha: Parameter

    def __check_init__(self):
        _check_positive(lengthscale=self.lengthscale, alpha=self.alpha)

    def _derivative(self, tau, order):
        t, alpha = tau / self.lengthscale, self.alpha
        log_base = jnp.log1p(t**2 / (2 * alpha))
        slopes, factor = [], 1.0
        for i in range(order + 1):
            slopes.append(factor * jnp.exp(-(alpha + i) * log_base))
            factor = -factor * (1 + i / alpha)
        return _of_half_square(t, slopes, order) / self.lengthscale**order


class Matern(Kernel):
    """The Matern covariance: paths with fewer than nu derivatives, `max_order` of k.

    Attributes:
        lengthscale: ell > 0.
        nu: 0.5, 1.5 or 2.5; derivatives of k to the order 0, 2 or 4. Static.
    """

    lengthscale: Parameter
    nu: float = eqx.field(static=True, default=2.5)

    def __check_init__(self):
        if self.nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"`nu` must be 0.5, 1.5 or 2.5, got {self.nu!r}.")
        _check_positive(lengthscale=self.lengthscale)

    @property
    def max_order(self) -> int:
        """Twice the derivatives of a path."""
        return round(2 * self.nu) - 1

    def _derivative(self, tau, order):
        scale = math.sqrt(2 * self.nu) / self.lengthscale
        t = scale * tau
        r = jnp.abs(t)
        if self.nu == 0.5:
            factors = (1,)
        elif self.nu == 1.5:
            factors = 1 + r, -t, r - 1
        else:
            factors = (
                1 + r * (1 + r / 3),
                -t * (1 + r) / 3,
                (r * (r - 1) - 1) / 3,
                t * (3 - r) / 3,
                1 + r * (r - 5) / 3,
            )
        return scale**order * factors[order] * jnp.exp(-r)


class Periodic(Kernel):
    """exp(-2 sin^2(pi tau / p) / ell^2).

    Attributes:
        period: p > 0, in the units of x.
        lengthscale: ell > 0, a number.
    """

    period: Parameter
    lengthscale: Parameter

    def __check_init__(self):
        _check_positive(period=self.period, lengthscale=self.lengthscale)

    def _derivative(self, tau, order):
        rate, c = 2 * jnp.pi / self.period, 1 / self.lengthscale**2
        s, g = c * jnp.sin(rate * tau), c * jnp.cos(rate * tau)
        # With k = exp(h): h' = -s, h'' = -g, h''' = s, h'''' = g, in units of the rate.
        factors = (
            1,
            -s,
            s**2 - g,
            s * (1 + 3 * g - s**2),
            g + s**2 * (s**2 - 6 * g - 4) + 3 * g**2,
        )
        value = jnp.exp(-2 * c * jnp.sin(rate * tau / 2) ** 2)
        return rate**order * factors[order] * value


class SpectralMixture(Kernel):
    """sum_q w_q h(tau; rho_q) cos(2 pi mu_q tau): Q bumps in the spectrum.

    With "gaussian" components h = exp(-rho tau^2), with "student" ones (of 5 degrees of
    freedom) the Matern 5/2 covariance of lengthscale 1 / rho. k(0) = sum_q w_q. Takes Q
    times the memory of its argument while it is differentiated.

    Attributes:
        log_weights: log w. A flat prior on it is p(w) ~ 1 / w, which prunes.
        rates: rho > 0, in the units of x to the power -2 ("gaussian") or -1.
        frequencies: mu, in periods for a unit of x.
        component: "gaussian" or "student". Static.

    References:
        Fang, Cooley, Long, Li, Kirby, Zhe. "Solving High Frequency and Multi-Scale PDEs
        with Gaussian Processes". 2023. arXiv:2311.04465.
        Wilson, Adams. "Gaussian Process Kernels for Pattern Discovery and
        Extrapolation". 2013. arXiv:1302.4245.
    """

    log_weights: Float[Array, " Q"]
    rates: Float[Array, " Q"]
    frequencies: Float[Array, " Q"]
    component: Literal["gaussian", "student"] = eqx.field(
        static=True, default="gaussian"
    )

    def __check_init__(self):
        if self.component not in ("gaussian", "student"):
            raise ValueError(
                errors.unknown("component", self.component, ("gaussian", "student"))
            )
        shapes = [
            jnp.shape(x) for x in (self.log_weights, self.rates, self.frequencies)
        ]
        if len({*shapes}) > 1 or not shapes[0]:
            raise ValueError(
                "`log_weights`, `rates` and `frequencies` must be vectors of one "
                f"length, got shapes {', '.join(map(str, shapes))}."
            )
        _check_positive(rates=self.rates)

    def _derivative(self, tau, order):
        tau = tau[..., None]
        if self.component == "gaussian":
            envelope = SquaredExponential(1 / jnp.sqrt(2 * self.rates))
        else:
            envelope = Matern(1 / self.rates)
        angular = 2 * jnp.pi * self.frequencies
        cos, sin = jnp.cos(angular * tau), jnp.sin(angular * tau)

        def wave(tau, order):
            return angular**order * (cos, -sin, -cos, sin)[order % 4]

        return jnp.sum(
            jnp.exp(self.log_weights) * _leibniz(envelope, wave, tau, order), -1
        )


class _Pair(Kernel):
    first: Kernel
    second: Kernel

    @property
    def max_order(self) -> int:
        """The lower one of the two."""
        return min(self.first.max_order, self.second.max_order)


class Sum(_Pair):
    """k1 + k2, what `+` makes.

    Attributes:
        first: k1.
        second: k2.
    """

    def _derivative(self, tau, order):
        return self.first(tau, order) + self.second(tau, order)


class Product(_Pair):
    """k1 k2, what `*` makes.

    Attributes:
        first: k1.
        second: k2.
    """

    def _derivative(self, tau, order):
        return _leibniz(self.first, self.second, tau, order)


class Scaled(Kernel):
    """variance * k, what `*` makes of a number.

    Attributes:
        variance: >= 0, the square of the units of what is modeled.
        kernel: k.
    """

    variance: Parameter
    kernel: Kernel

    def __check_init__(self):
        if jnp.ndim(self.variance):
            raise ValueError(
                f"`variance` must be a number, got shape {jnp.shape(self.variance)}."
            )
        if not isinstance(self.variance, Tracer) and not np.all(
            np.asarray(self.variance) >= 0
        ):
            raise ValueError(f"`variance` must be >= 0, got {self.variance}.")

    @property
    def max_order(self) -> int:
        """That of k."""
        return self.kernel.max_order

    def _derivative(self, tau, order):
        return self.variance * self.kernel(tau, order)


def gram(
    kernel: Kernel,
    x: Num[ArrayLike, " n"],
    y: Num[ArrayLike, " m"] | None = None,
    orders: tuple[int, int] = (0, 0),
) -> Float[Array, "n m"]:
    """Covariances d^a/dx^a d^b/dy^b k(x_i - y_j) of a-th and b-th derivatives.

    Args:
        kernel: k.
        x: Points.
        y: Points; None stands for x.
        orders: (a, b), whose sum the kernel's `max_order` bounds. Static.

    Returns:
        (-1)^b k^(a+b)(x_i - y_j).

    Raises:
        ValueError: Unless points are vectors, hyper-parameters numbers, and orders such
            as the kernel has.
    """
    y = x if y is None else y
    for name, points in (("x", x), ("y", y)):
        if jnp.ndim(points) != 1:
            raise ValueError(
                f"`{name}` must be a vector of points, got shape {jnp.shape(points)}."
            )
    a, b = orders
    if a < 0 or b < 0:
        raise ValueError(f"`orders` must be two integers >= 0, got {orders}.")
    check_scalar(kernel)
    return (-1) ** b * kernel(jnp.asarray(x)[:, None] - jnp.asarray(y), a + b)


def toeplitz_column(
    kernel: Kernel, spacing: Parameter, num: int, order: int = 0
) -> Float[Array, " num"]:
    """The first column k^(order)(i spacing) of a `gram` matrix on a regular grid.

    It is the whole matrix, which is symmetric for even orders and antisymmetric for odd
    ones: `gram(kernel, grid, orders=(order, 0))[i, j]` is entry i - j.

    Args:
        kernel: k.
        spacing: Between neighbors, in the units of x.
        num: Points. Static.
        order: Of the derivative. Static.

    Raises:
        ValueError: Unless hyper-parameters are numbers.
    """
    check_scalar(kernel)
    return kernel(spacing * jnp.arange(num), order)


def regular_spacing(x: Num[ArrayLike, " n"]) -> Float[Array, ""]:
    """The distance between neighbors of a regular grid.

    Raises:
        ValueError: Unless `x` is a vector of two points or more that, where they are
            known, ascend by equal steps, to a millionth of them or, where that is more,
            four rounding errors. Where they are traced, NaN instead.
    """
    if jnp.ndim(x) != 1 or jnp.size(x) < 2:
        raise ValueError(
            f"A grid must be a vector of 2 points or more, got shape {jnp.shape(x)}."
        )
    if not isinstance(x, Tracer):
        points = np.asarray(x)
        wide = points.astype(np.float64)
        step = (wide[-1] - wide[0]) / (len(wide) - 1)
        error = np.max(np.abs(wide - wide[0] - step * np.arange(len(wide))))
        eps = np.finfo(np.result_type(points, np.float32)).eps
        rounding = 4 * eps * np.max(np.abs(wide))
        if not (step > 0 and error <= max(1e-6 * step, rounding)):
            raise ValueError(
                "The grid must be regular for Toeplitz matrices: steps go from "
                f"{np.min(np.diff(wide))} to {np.max(np.diff(wide))}."
            )
    x = jnp.asarray(x, float)
    step = (x[-1] - x[0]) / (len(x) - 1)
    error = jnp.max(jnp.abs(x - x[0] - step * jnp.arange(len(x))))
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x))
    is_regular = (step > 0) & (error <= jnp.maximum(1e-6 * step, rounding))
    return jnp.where(is_regular, step, jnp.nan)


def check_scalar(kernel: Kernel) -> None:
    """Matrices need a kernel of one number at one difference.

    Raises:
        ValueError: If hyper-parameters are arrays that give several.
    """
    shape = jax.eval_shape(kernel, jnp.zeros(())).shape
    if shape:
        raise ValueError(
            "`kernel` must have numbers as hyper-parameters, unless `vmap` maps them: "
            f"these give values of shape {shape} instead of one."
        )


def _check_positive(**values):
    """Hyper-parameters that are known are above zero."""
    for name, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"`{name}` must be > 0, got {value}.")


def _of_half_square(t, slopes, order):
    """The derivative in t of f(t^2 / 2), given f and its derivatives there."""
    if order == 0:
        return slopes[0]
    if order == 1:
        return t * slopes[1]
    if order == 2:
        return slopes[1] + t**2 * slopes[2]
    if order == 3:
        return t * (3 * slopes[2] + t**2 * slopes[3])
    return 3 * slopes[2] + t**2 * (6 * slopes[3] + t**2 * slopes[4])


def _leibniz(f, g, tau, order):
    """The derivative of a product."""
    total = f(tau, 0) * g(tau, order)
    for i in range(1, order + 1):
        total = total + math.comb(order, i) * f(tau, i) * g(tau, order - i)
    return total
