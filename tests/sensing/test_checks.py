"""What operators and problems ask of their arguments; images as whole numbers."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.sensing import operator, problem


def test_arrays_and_shapes_come_back():
    assert operator.check_shape([3, np.int64(2)]) == (3, 2)
    found = operator.check_array("x", [[1.0, 2.0]], (1, "k"))
    np.testing.assert_array_equal(found, [[1, 2]])


@pytest.mark.misuse
def test_what_is_wrong_is_named():
    for shape in ((3,), (3, 0), (3, 2.0), "ab", 3):
        with pytest.raises(ValueError, match="`shape` must be two sizes"):
            operator.check_shape(shape)
    with pytest.raises(ValueError, match=r"`x` must have shape \(1, k\), got \(2, 1\)"):
        operator.check_array("x", jnp.ones((2, 1)), (1, "k"))
    with pytest.raises(ValueError, match="`x` must be real"):
        operator.check_array("x", jnp.ones(2, complex), (2,))
    identity = sensing.identity((3, 2))
    operator.check_implementation(identity, "xla")
    with pytest.raises(ValueError, match="`implementation` 'pallas' is for ensembles"):
        operator.check_implementation(identity, "pallas")
    with pytest.raises(ValueError, match="did you mean 'pallas'"):
        operator.check_implementation(identity, "palas")  # pyright: ignore


@pytest.mark.misuse
def test_levels_are_no_numbers():
    truth = sensing.low_rank(jr.key(0), (3, 2), 1)
    plain = sensing.measure(sensing.identity((3, 2)), truth)
    problem.check_unquantized(plain, "subgm")
    quantizer = sensing.Quantizer(jnp.zeros(1), 1.0)
    levels = sensing.quantize(jr.key(1), plain, quantizer)
    with pytest.raises(ValueError, match="`subgm` needs measurements that are numbers"):
        problem.check_unquantized(levels, "subgm")


def test_luma_is_rounded_and_clipped():
    pixels = sensing.to_pixels(jnp.array([-1.0, 0.0, 0.499, 1.0, 3.0]))
    assert pixels.dtype == jnp.uint8
    assert pixels.tolist() == [0, 0, 127, 255, 255]
