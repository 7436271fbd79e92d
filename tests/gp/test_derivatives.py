"""What can be differentiated of a `GridGP`, and what refuses to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import covariance, gp
from jaxlr.core.compat import x64


@pytest.mark.parametrize("has_gaps", [False, True])
def test_means_and_solves_are_differentiable_in_the_data(has_gaps):
    """Both are linear in y: the derivative is the map itself, at a unit of it."""
    rng = np.random.default_rng(0)
    mask = rng.random((6, 5)) > 0.2 if has_gaps else None
    grid = [np.linspace(0, 1, n) for n in (6, 5)]
    y, weight, unit = rng.normal(size=(3, 6, 5))

    def total(y):
        process_ = gp.GridGP(
            [covariance.SquaredExponential(0.3), covariance.Matern(0.4)],
            grid,
            0.1,
            mask,
        )
        return jnp.vdot(weight, process_.solve(y)[0] + process_.posterior(y).mean)

    with x64(True):
        slope = jax.jit(jax.grad(total))(jnp.asarray(y))
        _, along = jax.jvp(total, (jnp.asarray(y),), (jnp.asarray(unit),))
        np.testing.assert_allclose(np.vdot(slope, unit), total(unit), rtol=1e-8)
        np.testing.assert_allclose(along, total(unit), rtol=1e-8)


@pytest.mark.misuse
def test_derivatives_that_are_not_there_are_refused():
    grid, y = [np.linspace(0, 1, 4)], np.arange(4.0)

    def process_(ell, noise):
        return gp.GridGP([covariance.Matern(ell)], grid, noise)

    for number in (0, 1):
        for result in (
            lambda p: p.solve(y)[0],
            lambda p: p.posterior(y).mean,
            lambda p: p.posterior(y).predict([[0.3]]).mean,
        ):
            with pytest.raises(ValueError, match="log_marginal_likelihood"):
                jax.grad(lambda *h, f=result: jnp.sum(f(process_(*h))), number)(
                    0.5, 0.1
                )


@pytest.mark.slow
def test_a_likelihood_that_has_not_converged_has_no_slope():
    mask = np.random.default_rng(0).random((5, 4)) > 0.3
    grid = [np.linspace(0, 1, n) for n in (5, 4)]

    def value(ell):
        kernels = [covariance.Matern(ell), covariance.Matern(0.4)]
        process_ = gp.GridGP(kernels, grid, 0.01, mask, max_steps=1)
        return process_.log_marginal_likelihood(np.ones((5, 4)))

    found = jax.value_and_grad(value)(0.3)
    assert np.isnan(found).all()
