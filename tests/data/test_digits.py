"""Digits, as images with label noise and as sequences, against scikit-learn's own."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxlr.data import digits, sequential_digits


PIXELS, LABELS = map(np.asarray, load_digits(return_X_y=True))


def in_order(x, labels):
    """Rows of pixels and label, sorted."""
    rows = np.column_stack([np.asarray(x), np.asarray(labels)])
    return rows[np.lexsort(rows.T)]


def test_all_digits_are_split_and_keep_their_labels():
    data = digits(jr.key(3), num_train=1297, num_test=500, label_noise=0.0)
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
    noisy = jax.jit(jax.vmap(lambda share: digits(jr.key(1), label_noise=share)))(
        shares
    )
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
    one, other = (digits(jr.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one.x, other.x)
    assert not np.array_equal(one.is_redrawn, other.is_redrawn)


def test_sequences_are_all_digits_row_by_row():
    data = sequential_digits()
    assert data.x.shape == (1437, 64, 1)
    assert data.test_x.shape == (360, 64, 1)
    x = np.concatenate([data.x, data.test_x])[..., 0]
    labels = np.concatenate([data.labels, data.test_labels])
    np.testing.assert_array_equal(in_order(x, labels), in_order(PIXELS / 16, LABELS))
    # Both parts have all ten digits: the split is random.
    assert (np.bincount(data.test_labels, minlength=10) >= 20).all()
    np.testing.assert_array_equal(data.x, sequential_digits(seed=0).x)
    assert not np.array_equal(data.x, sequential_digits(seed=1).x)


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
        digits(jr.key(0), **sizes)


@pytest.mark.misuse
@pytest.mark.parametrize("load", [lambda: digits(jr.key(0)), sequential_digits])
def test_missing_scikit_learn_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "jaxlr\[data\]"'):
        load()
