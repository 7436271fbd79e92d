"""How hyper-parameters are trained: by what their fields say, not by their names."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxlr import covariance
from jaxlr.covariance import HELD, LOG_SCALE


class Own(covariance.Kernel):
    """Names that say nothing, and a module that is held as a whole."""

    phase: covariance.Parameter
    log_factor: covariance.Parameter = eqx.field(metadata=LOG_SCALE)
    frequencies: covariance.Parameter
    fixed: covariance.Kernel = eqx.field(metadata=HELD)
    others: tuple = eqx.field(metadata=LOG_SCALE)
    inner: covariance.Kernel

    def _derivative(self, tau, order):
        return self.inner(tau, order)


MATERN = covariance.Matern(0.3)
OWN = Own(-0.5, 2.0, -3.0, MATERN, (5.0, MATERN), 4.0 * MATERN)


def test_logarithms_are_of_what_asks_for_them():
    params = covariance.unconstrain(OWN)
    assert params.phase == -0.5
    assert params.frequencies == -3.0
    assert params.fixed.lengthscale == np.float32(0.3)
    for got, want in (
        (params.log_factor, 2.0),
        (params.others[0], 5.0),
        (params.others[1].lengthscale, 0.3),
        (params.inner.variance, 4.0),
        (params.inner.kernel.lengthscale, 0.3),
    ):
        np.testing.assert_allclose(got, np.log(want), rtol=1e-6)
    assert covariance.unconstrain(OWN, jnp.bfloat16).phase.dtype == jnp.bfloat16


def test_kernels_come_back():
    mixture = covariance.SpectralMixture(
        jnp.array([-1.0, 2.0]), jnp.array([0.5, 3.0]), jnp.array([0.0, -7.0])
    )
    kernels = [
        OWN,
        mixture + covariance.Periodic(0.4, 2) * covariance.SquaredExponential(0.1),
        covariance.RationalQuadratic(0.2, 3.0),
    ]
    params = covariance.unconstrain(kernels)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params))
    np.testing.assert_array_equal(params[1].first.log_weights, mixture.log_weights)
    np.testing.assert_array_equal(params[1].first.frequencies, mixture.frequencies)
    np.testing.assert_allclose(params[1].second.second.lengthscale, np.log(0.1), 1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        covariance.constrain(params),
        kernels,
    )


def test_what_is_held_has_no_slope_while_it_is_trained():
    def total(params):
        return sum(jnp.sum(x) for x in jax.tree.leaves(covariance.hold(params)))

    slope = jax.grad(total)(covariance.unconstrain(OWN))
    assert slope.fixed.lengthscale == 0
    assert slope.phase == slope.others[1].lengthscale == slope.frequencies == 1
