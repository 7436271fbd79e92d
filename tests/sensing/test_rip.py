"""Restricted isometry: how far measurements are from keeping norms, and signs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sensing import operator as ops, theory
from tests.sensing import reference


def test_the_rip_constant_is_that_of_the_worst_matrix():
    """Of rank one, 2 x 2: a grid of all of them is the oracle."""
    with x64(True):
        operator = ops.gaussian(jr.key(1), (2, 2), 30)
        angles = np.linspace(0, np.pi, 400)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x = np.einsum("ai,bj->abij", unit, unit).reshape(-1, 4)
        a = reference.matrices(operator).reshape(-1, 4)
        ratios = np.sum((x @ a.T) ** 2, axis=1)
        want = np.abs(ratios - 1).max()
        got = operator.rip_constant(jr.key(0), rank=1)
        np.testing.assert_allclose(got, want, rtol=1e-3)
        blunt = operator.rip_constant(jr.key(0), rank=1, num_samples=1, num_steps=0)
        assert blunt < got


def test_the_rip_constant_sees_what_is_not_measured():
    """A row in the kernel: the least ratio, 0, is farther from 1 than the largest."""
    blind = ops.kronecker(jnp.diag(jnp.array([1.0, 1, 1, 0])), jnp.eye(4))
    np.testing.assert_allclose(
        blind.rip_constant(jr.key(0), rank=1, num_steps=60), 1, atol=1e-3
    )


@pytest.mark.slow
def test_the_rip_constant_falls_with_measurements_and_grows_with_rank():
    def constant(m, rank):
        operator = ops.gaussian(jr.key(1), (12, 10), m)
        return jax.jit(
            lambda key: operator.rip_constant(key, rank=rank, num_samples=2)
        )(jr.key(0))

    assert constant(3000, 1) < constant(300, 1) < constant(300, 5)
    symmetric = ops.symmetric_gaussian(jr.key(1), (12, 12), 3000)
    assert symmetric.rip_constant(jr.key(0), rank=2) < 0.4
    assert float(ops.identity((4, 3)).rip_constant(jr.key(0), rank=2)) < 1e-5


def test_the_sign_rip_scale_is_that_of_half_normals():
    operator = ops.gaussian(jr.key(1), (12, 10), 4000)
    scale = operator.sign_rip_scale(jr.key(0), rank=2)
    np.testing.assert_allclose(scale, np.sqrt(2 / np.pi), rtol=0.02)
    np.testing.assert_allclose(scale, theory.sign_rip_scale(1.0), rtol=0.02)
    symmetric = ops.symmetric_gaussian(jr.key(1), (12, 12), 4000)
    scale = symmetric.sign_rip_scale(jr.key(0), rank=2)
    np.testing.assert_allclose(scale, np.sqrt(2 / np.pi), rtol=0.02)
