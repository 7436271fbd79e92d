"""Stationary covariances of one variable, each with its derivatives in closed form.

Letters: tau = x - x', ell a lengthscale, both in the units of x; Q components.
"""

import math
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.core import checks
from jaxlr.covariance.kernel import Kernel, leibniz, Parameter
from jaxlr.covariance.training import HELD, LOG_SCALE


class SquaredExponential(Kernel):
    """exp(-tau^2 / (2 ell^2)).

    Attributes:
        lengthscale: Lengthscale ell > 0, in the units of x; infinite for a constant.
    """

    lengthscale: Parameter = eqx.field(metadata=LOG_SCALE)

    def __check_init__(self):
        checks.within("lengthscale", self.lengthscale, 0, math.inf, ends="(]")

    def _derivative(self, tau, order):
        t = tau / self.lengthscale
        f = jnp.exp(-(t**2) / 2)
        slopes = [f, -f, f, -f, f]
        return _of_half_square(t, slopes, order) / self.lengthscale**order


class RationalQuadratic(Kernel):
    """(1 + tau^2 / (2 alpha ell^2))^-alpha: squared exponentials of many lengthscales.

    Attributes:
        lengthscale: Lengthscale ell > 0, in the units of x; infinite for a constant.
        alpha: Exponent > 0; the larger, the closer the lengthscales are to each other.
    """

    lengthscale: Parameter = eqx.field(metadata=LOG_SCALE)
    alpha: Parameter = eqx.field(metadata=LOG_SCALE)

    def __check_init__(self):
        checks.within("lengthscale", self.lengthscale, 0, math.inf, ends="(]")
        checks.positive("alpha", self.alpha)

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
        lengthscale: Lengthscale ell > 0, in the units of x; infinite for a constant.
        nu: Smoothness 0.5, 1.5 or 2.5: derivatives of k to the order 0, 2 or 4. Static.
    """

    lengthscale: Parameter = eqx.field(metadata=LOG_SCALE)
    nu: float = eqx.field(static=True, default=2.5)

    def __check_init__(self):
        checks.choice("nu", self.nu, (0.5, 1.5, 2.5))
        checks.within("lengthscale", self.lengthscale, 0, math.inf, ends="(]")

    @property
    def max_order(self) -> int:
        """Twice the number of derivatives that a path has."""
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
        period: Period p > 0, in the units of x.
        lengthscale: Lengthscale ell > 0, without units.
    """

    period: Parameter = eqx.field(metadata=LOG_SCALE)
    lengthscale: Parameter = eqx.field(metadata=LOG_SCALE)

    def __check_init__(self):
        checks.within("period", self.period, 0, math.inf, ends="(]")
        checks.within("lengthscale", self.lengthscale, 0, math.inf, ends="(]")

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
        log_weights: Logarithms of the weights w. A flat prior on them is p(w) ~ 1 / w,
            which prunes.
        rates: Rates rho > 0, in the units of x to the power -2 ("gaussian") or -1.
        frequencies: Frequencies mu, in periods for a unit of x; held where the others
            are trained.
        component: Form of h, "gaussian" or "student". Static.

    References:
        Fang, Cooley, Long, Li, Kirby, Zhe. "Solving High Frequency and Multi-Scale PDEs
        with Gaussian Processes". 2023. arXiv:2311.04465.
        Wilson, Adams. "Gaussian Process Kernels for Pattern Discovery and
        Extrapolation". 2013. arXiv:1302.4245.
    """

    log_weights: Float[Array, " Q"]
    rates: Float[Array, " Q"] = eqx.field(metadata=LOG_SCALE)
    frequencies: Float[Array, " Q"] = eqx.field(metadata=HELD)
    component: Literal["gaussian", "student"] = eqx.field(
        static=True, default="gaussian"
    )

    def __check_init__(self):
        checks.choice("component", self.component, ("gaussian", "student"))
        shapes = [
            jnp.shape(x) for x in (self.log_weights, self.rates, self.frequencies)
        ]
        if len({*shapes}) > 1 or not shapes[0]:
            raise ValueError(
                "`log_weights`, `rates` and `frequencies` must be vectors of one "
                f"length, got shapes {', '.join(map(str, shapes))}."
            )
        checks.positive("rates", self.rates)

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
            jnp.exp(self.log_weights) * leibniz(envelope, wave, tau, order), -1
        )


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
