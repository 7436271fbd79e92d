"""How programs are compiled."""

import jax
import jax.numpy as jnp
import pytest

from jaxlr.lab.program import compiler_options


@pytest.mark.parametrize(
    ("function", "is_decomposition"),
    [(jnp.linalg.eigh, True), (jnp.linalg.cholesky, True), (jnp.cumsum, False)],
)
def test_decompositions_have_one_thread_on_a_cpu(function, is_decomposition):
    x = jnp.stack([jnp.eye(3), 2 * jnp.eye(3)])
    lowered = jax.jit(jax.vmap(function)).lower(x)
    options = compiler_options(lowered, jax.devices("cpu"))
    wanted = {"xla_cpu_multi_thread_eigen": False} if is_decomposition else None
    assert options == wanted
    found = lowered.compile(options)(x)
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(jax.vmap(function)(x)), strict=True
    ):
        assert jnp.array_equal(a, b)
