"""What is not a real number is named, whatever it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core import checks


@pytest.mark.misuse
@pytest.mark.parametrize("value", [None, "a", {}, 1j, [1, None]])
def test_what_is_no_real_number_is_named(value):
    for check in (
        lambda: checks.positive("x", value),
        lambda: checks.within("x", value, 0, 1),
    ):
        with pytest.raises(ValueError, match="`x` must be a real number"):
            check()


def test_real_numbers_of_every_kind_are_given_back():
    for value in (1, 0.5, np.float32(1), [1, 0.5], jnp.ones(2, jnp.bfloat16)):
        assert checks.positive("x", value) is value
        assert checks.within("x", value, 0, 1) is value
