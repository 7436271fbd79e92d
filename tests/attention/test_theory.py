"""Bounds against what they bound."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import attention
from jaxlr.attention._polynomial import features, table
from jaxlr.core import compat


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("r", [0.1, 0.5, 0.9, 2.0])
def test_the_certificate_is_the_largest_relative_error(degree, r):
    s = np.linspace(-r, r, 2001)
    taylor = sum(s**m / math.factorial(m) for m in range(degree + 1))
    delta = np.abs(taylor * np.exp(-s) - 1).max()
    want = 2 * delta / (1 - delta) if delta < 1 else np.inf
    with compat.x64(True):
        found = attention.certified_error(degree, r)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-14)


def test_the_certificate_of_the_specification():
    """At R = 1: 1.1 at degree 2, 4e-2 at degree 4."""
    np.testing.assert_allclose(attention.certified_error(2, 1.0), 1.12, atol=0.01)
    np.testing.assert_allclose(attention.certified_error(4, 1.0), 0.0394, atol=1e-4)
    assert attention.certified_error(4, 0.0) == 0
    assert attention.certified_error(4, 1e3) == np.inf
    slope = jax.vmap(jax.grad(lambda r: attention.certified_error(4, r)))
    slopes = slope(jnp.array([0.0, 0.5, 100.0]))
    np.testing.assert_array_equal(slopes[jnp.array([0, 2])], 0)
    assert 0 < slopes[1] < 1
    for no_bound in (jnp.nan, -3.0, jnp.inf):
        assert attention.certified_error(4, no_bound) == np.inf


def test_scores_stay_below_their_bound():
    query, *keys = jr.uniform(jr.key(0), (3, 50, 4), minval=-0.7, maxval=0.7)
    scores = jnp.einsum("id,jd,kd->ijk", query, *keys)
    bound = attention.score_bound(query, keys)
    assert jnp.abs(scores).max() <= bound
    assert bound <= attention.entry_score_bound(0.7, 4, 2, 1.0)
    assert attention.entry_score_bound(0.5, 4, 2, 0.25) == pytest.approx(0.125)


@pytest.mark.parametrize(("d", "degree"), [(4, 4), (8, 2), (16, 3), (3, 0)])
def test_features_make_the_polynomial(d, degree):
    with compat.x64(True):
        x, y = jr.normal(jr.key(0), (2, 5, d))
        _, weights = table(d, degree)
        assert weights.size == attention.num_features(d, degree)
        found = (features(x, degree) * weights) @ features(y, degree).T
        s = x @ y.T
        want = sum(s**m / math.factorial(m) for m in range(degree + 1))
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)
