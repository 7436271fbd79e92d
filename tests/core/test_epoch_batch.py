"""Batches of an epoch: each example once, in an order of its own."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import core


@pytest.mark.parametrize(("num", "size"), [(10, 3), (10, 5), (7, 7), (4, 1)])
def test_every_epoch_goes_once_through_a_new_order_of_all(num, size):
    per_epoch = num // size
    take = jax.vmap(lambda t: core.epoch_batch(jr.key(2), t, num, size))
    batches = np.asarray(jax.jit(take)(jnp.arange(50 * per_epoch)))
    epochs = batches.reshape(50, per_epoch * size)
    assert ((batches >= 0) & (batches < num)).all()
    assert (np.diff(np.sort(epochs, axis=1), axis=1) > 0).all()
    assert len(np.unique(epochs, axis=0)) > 15
    # What one epoch leaves out, others take.
    assert len(np.unique(epochs)) == num


def test_batch_is_that_of_the_step_and_the_key():
    def batch(seed, step):
        return np.asarray(core.epoch_batch(jr.key(seed), step, 100, 10))

    np.testing.assert_array_equal(batch(0, 13), batch(0, jnp.asarray(13)))
    assert not np.array_equal(batch(0, 13), batch(1, 13))


@pytest.mark.misuse
@pytest.mark.parametrize("size", [0, 11])
def test_batch_size_out_of_range_is_named(size):
    with pytest.raises(
        ValueError, match=rf"`batch_size` must be in 1\.\.10, got {size}"
    ):
        core.epoch_batch(jr.key(0), 0, 10, size)
