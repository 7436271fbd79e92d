"""Helpers on trees: what is finite, what diverged, which leaves are taken."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr.core import tree


KEY = jr.key(0)
INFINITE, NAN = jnp.array([1.0, jnp.inf]), jnp.array([jnp.nan, 1.0])


def test_floating_and_complex_arrays_are_inexact():
    assert tree.is_inexact(jnp.ones(2))
    assert tree.is_inexact(jnp.ones(2, complex))
    assert not tree.is_inexact(jnp.ones(2, int))
    assert not tree.is_inexact(KEY)


def test_all_finite_asks_inexact_leaves_alone():
    assert tree.all_finite((jnp.ones(2), jnp.arange(2), KEY))
    assert tree.all_finite(())
    assert not tree.all_finite((jnp.ones(2), INFINITE))
    assert not tree.all_finite((NAN, jnp.ones(2)))


def test_an_infinity_that_was_there_before_is_no_divergence():
    finite = jnp.ones(2)
    assert not tree.has_diverged(INFINITE, INFINITE, finite)
    assert tree.has_diverged(finite, INFINITE, finite)
    assert tree.has_diverged(finite, NAN, finite)
    assert tree.has_diverged(NAN, NAN, finite)
    assert tree.has_diverged(finite, finite, INFINITE)


def test_select_takes_whole_trees_keys_included():
    first, second = (KEY, jnp.zeros(2)), (jr.key(1), jnp.full(2, jnp.nan))
    for which, want in ((True, first), (False, second)):
        key, x = tree.select(jnp.asarray(which), first, second)
        assert jr.key_data(key).tolist() == jr.key_data(want[0]).tolist()
        np.testing.assert_array_equal(x, want[1])


def test_partition_parts_arrays_and_numbers_from_the_rest():
    given = {"x": jnp.ones(2), "n": 3, "f": jnp.tanh}
    arrays, rest = tree.partition(given)
    assert jax.tree.leaves(rest) == [jnp.tanh]
    assert arrays["n"] == 3
    assert jax.tree.structure(eqx.combine(arrays, rest)) == jax.tree.structure(given)
