"""The Hadamard transform against its matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxlr.core.compat import x64
from jaxlr.linalg import hadamard_transform


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (8, 5), (16,), (4, 3, 2)])
def test_it_is_the_matrix(shape):
    x = np.random.default_rng(0).normal(size=shape)
    matrix = scipy.linalg.hadamard(shape[0]) / np.sqrt(shape[0])
    with x64(True):
        got = hadamard_transform(jnp.asarray(x))
        np.testing.assert_allclose(got, np.tensordot(matrix, x, 1), atol=1e-14)
        np.testing.assert_allclose(hadamard_transform(got), x, atol=1e-14)
        grad = jax.grad(lambda x: jnp.sum(hadamard_transform(x) * got))(got)
        np.testing.assert_allclose(grad, x, atol=1e-14)


@pytest.mark.misuse
def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"power of 2 of rows, got shape \(6, 2\)"):
        hadamard_transform(jnp.ones((6, 2)))
