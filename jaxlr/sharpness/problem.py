"""Data sets that sharpness is studied on."""

from typing import Any, NamedTuple

from jax.core import Tracer
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlr.core import errors, Hyper


class Classification(NamedTuple):
    """Examples with labels, to train on and to test with.

    Attributes:
        x: Training examples.
        labels: Their labels, some of them wrong.
        is_redrawn: Which labels were redrawn (one in ten of those by chance rightly).
        test_x: Other examples.
        test_labels: Their labels, all right.
    """

    x: Float[Array, "n p"]
    labels: Int[Array, " n"]
    is_redrawn: Bool[Array, " n"]
    test_x: Float[Array, "n_test p"]
    test_labels: Int[Array, " n_test"]


def digits(
    key: Key[Array, ""],
    *,
    num_train: int = 1280,
    num_test: int = 500,
    label_noise: Hyper = 0.2,
) -> Classification:
    """Handwritten digits, 8 x 8 pixels, with noise on the labels to train on.

    The 1797 digits of the UCI test set that scikit-learn brings along.

    Args:
        key: Of the split into training and test examples, and of the noise.
        num_train: Training examples. Static.
        num_test: Test examples. Static.
        label_noise: Share of the training labels that are redrawn uniformly from all
            ten; those redrawn at a smaller share are among those at a larger one.

    Returns:
        Pixels from 0 to 1, p = 64; labels 0..9.

    Raises:
        ValueError: Unless both numbers are at least 1 and 1797 at most together; or, if
            it is known while tracing, for a share that is not in 0..1.
        ImportError: Without scikit-learn.
    """
    is_known = not isinstance(label_noise, Tracer)
    if is_known and not 0 <= label_noise <= 1:
        raise ValueError(f"`label_noise` must be in 0..1, got {label_noise}.")
    with errors.needs_data_extra("digits"):
        from sklearn.datasets import load_digits

    data: Any = load_digits()
    x, labels = jnp.asarray(data.data / 16.0, float), jnp.asarray(data.target)
    for name, value, most in (
        ("num_train", num_train, len(x) - 1),
        ("num_test", num_test, len(x) - num_train),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"`{name}` must be in 1..{most}, got {value}.")
    split_key, where_key, label_key = jr.split(key, 3)
    order = jr.permutation(split_key, len(x))
    train, test = order[:num_train], order[num_train : num_train + num_test]
    is_redrawn = jr.uniform(where_key, (num_train,)) < label_noise
    redrawn = jr.randint(label_key, (num_train,), 0, 10, labels.dtype)
    return Classification(
        x[train],
        jnp.where(is_redrawn, redrawn, labels[train]),
        is_redrawn,
        x[test],
        labels[test],
    )
