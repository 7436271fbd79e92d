"""Handwritten digits that scikit-learn brings along: images, and sequences of pixels.

Letters: n examples to train on, n_test to test with.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from jaxlr.core import checks, Hyper
from jaxlr.data._extra import needs_data_extra


class Digits(NamedTuple):
    """Images of digits with labels, to train on and to test with.

    Attributes:
        x: Training images, pixels from 0 to 1.
        labels: The digits that they are said to show, some of them wrong.
        is_redrawn: Which labels were redrawn (one in ten of those by chance rightly).
        test_x: Other images.
        test_labels: Digits that those show, all right.
    """

    x: Float[Array, "n 64"]
    labels: Int[Array, " n"]
    is_redrawn: Bool[Array, " n"]
    test_x: Float[Array, "n_test 64"]
    test_labels: Int[Array, " n_test"]


class SequentialDigits(NamedTuple):
    """Digits as sequences of pixels, to train on and to test with.

    Attributes:
        x: Training sequences, pixels from 0 to 1.
        labels: Digits that the training sequences show.
        test_x: Other sequences.
        test_labels: Digits that those show.
    """

    x: Float[np.ndarray, "n 64 1"]
    labels: Int[np.ndarray, " n"]
    test_x: Float[np.ndarray, "n_test 64 1"]
    test_labels: Int[np.ndarray, " n_test"]


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All 1797 images as float64 rows, and their digits, for the function `name`."""
    with needs_data_extra(name):
        from sklearn.datasets import load_digits

    data: Any = load_digits()
    return data.data / 16, data.target


def digits(
    key: Key[Array, ""],
    *,
    num_train: int = 1280,
    num_test: int = 500,
    label_noise: Hyper = 0.2,
) -> Digits:
    """Handwritten digits, 8 x 8 pixels, with noise on the labels to train on.

    The 1797 digits of the UCI test set that scikit-learn brings along.

    Args:
        key: Draws the split into training and test examples, and the noise.
        num_train: Number of training examples. Static.
        num_test: Number of test examples. Static.
        label_noise: Share of the training labels that are redrawn uniformly from all
            ten; those redrawn at a smaller share are among those at a larger one.

    Returns:
        Pixels from 0 to 1, 64 of each image; labels 0..9.

    Raises:
        ValueError: Unless both numbers are at least 1 and 1797 at most together; or, if
            it is known while tracing, for a share that is not in 0..1.
        ImportError: Without scikit-learn.
    """
    checks.within("label_noise", label_noise, 0, 1)
    pixels, target = _load("digits")
    x, labels = jnp.asarray(pixels, float), jnp.asarray(target)
    num_train = checks.count("num_train", num_train, most=len(x) - 1)
    num_test = checks.count("num_test", num_test, most=len(x) - num_train)
    split_key, where_key, label_key = jr.split(key, 3)
    order = jr.permutation(split_key, len(x))
    train, test = order[:num_train], order[num_train : num_train + num_test]
    is_redrawn = jr.uniform(where_key, (num_train,)) < label_noise
    redrawn = jr.randint(label_key, (num_train,), 0, 10, labels.dtype)
    return Digits(
        x[train],
        jnp.where(is_redrawn, redrawn, labels[train]),
        is_redrawn,
        x[test],
        labels[test],
    )


def sequential_digits(*, seed: int = 0) -> SequentialDigits:
    """The images of `digits`, read row by row: 64 steps of one channel.

    Args:
        seed: Draws the split: 1437 digits (80 %) to train on, 360 to test with.

    Raises:
        ValueError: Unless `seed` is an integer >= 0.
        ImportError: Without scikit-learn.
    """
    seed = checks.count("seed", seed, least=0)
    pixels, target = _load("sequential_digits")
    x, labels = pixels.astype(np.float32)[:, :, None], target.astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(order, [len(x) * 4 // 5])
    return SequentialDigits(x[train], labels[train], x[test], labels[test])
