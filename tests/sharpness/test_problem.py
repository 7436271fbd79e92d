"""Digits with label noise against scikit-learn's own, and batches of an epoch."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxlr import core, sharpness


PIXELS, LABELS = map(np.asarray, load_digits(return_X_y=True))


def in_order(x, labels):
    """Rows of pixels and label, sorted."""
    rows = np.column_stack([np.asarray(x), np.asarray(labels)])
    return rows[np.lexsort(rows.T)]


def test_all_digits_are_split_and_keep_their_labels():
    data = sharpness.digits(jr.key(3), num_train=1297, num_test=500, label_noise=0.0)
    assert data.x.shape == (1297, 64)
    assert data.test_x.shape == (500, 64)
    assert not data.is_redrawn.any()
    x = np.concatenate([data.x, data.test_x])
    labels = np.concatenate([data.labels, data.test_labels])
    # As multisets, so that no digit is in both parts.
    np.testing.assert_array_equal(in_order(x, labels), in_order(PIXELS / 16, LABELS))
    assert not np.array_equal(labels, LABELS)


def test_noise_is_on_the_training_labels_alone_and_grows_with_its_share():
    shares = jnp.array([0.0, 0.2, 0.6, 1.0])
    noisy = jax.jit(
        jax.vmap(lambda share: sharpness.digits(jr.key(1), label_noise=share))
    )(shares)
    clean = noisy.labels[0]
    for name in ("x", "test_x", "test_labels"):
        np.testing.assert_array_equal(
            getattr(noisy, name), getattr(noisy, name)[:1].repeat(4, 0)
        )
    for i, share in enumerate(shares):
        where, labels = noisy.is_redrawn[i], noisy.labels[i]
        # Four deviations of a binomial share of 1280.
        assert abs(where.mean() - share) <= 4 * (share * (1 - share) / 1280) ** 0.5
        np.testing.assert_array_equal(labels[~where], clean[~where])
        if i:
            assert where[noisy.is_redrawn[i - 1]].all()
            kept = noisy.is_redrawn[i - 1]
            np.testing.assert_array_equal(labels[kept], noisy.labels[i - 1][kept])
    counts = np.bincount(noisy.labels[3], minlength=10)
    assert counts.size == 10
    assert np.abs(counts - 128).max() <= 4 * (1280 * 0.09) ** 0.5
    # One in ten is redrawn rightly: the label drawn does not depend on the right one.
    is_right = (noisy.labels[3] == clean).mean()
    assert abs(is_right - 0.1) <= 4 * (0.09 / 1280) ** 0.5


def test_split_and_noise_are_those_of_the_key():
    one, other = (sharpness.digits(jr.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one.x, other.x)
    assert not np.array_equal(one.is_redrawn, other.is_redrawn)


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
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 0}, r"`num_train` must be in 1\.\.1796, got 0"),
        ({"num_train": 1797}, r"`num_train` must be in 1\.\.1796, got 1797"),
        ({"num_train": 1500}, r"`num_test` must be in 1\.\.297, got 500"),
        ({"num_test": 0}, r"`num_test` must be in 1\.\.517, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharpness.digits(jr.key(0), **sizes)


@pytest.mark.misuse
@pytest.mark.parametrize("size", [0, 11])
def test_batch_size_out_of_range_is_named(size):
    with pytest.raises(
        ValueError, match=rf"`batch_size` must be in 1\.\.10, got {size}"
    ):
        core.epoch_batch(jr.key(0), 0, 10, size)


@pytest.mark.misuse
def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "jaxlr\[data\]"'):
        sharpness.digits(jr.key(0))
