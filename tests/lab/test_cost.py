"""Flops of programs, by their compiler and by the repeats of their loops."""

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from jaxlr import attention
from jaxlr.lab.cost import compiled_cost


N = 16
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
STACK = jax.ShapeDtypeStruct((12, N, N), jnp.float32)
PRODUCT = 2 * N**3


def chain(unroll):
    """A product a step, and another one in a loop in the loop."""

    def step(x, y):
        x = lax.fori_loop(0, 5, lambda _, x: x @ y, x, unroll=unroll)
        return jnp.sin(x @ y), jnp.sum(x)

    return lambda x, ys: lax.scan(step, x, ys, unroll=unroll)


def gradient(fn):
    return jax.grad(lambda *args: jnp.sum(fn(*args)[1]))


def test_a_product():
    assert compiled_cost(jnp.dot, SQUARE, SQUARE) == (PRODUCT, 0)


def test_sizes_may_be_beyond_memory():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    assert compiled_cost(jnp.dot, huge, huge).flops == pytest.approx(2e18)


@pytest.mark.parametrize("change", [lambda fn: fn, gradient, jax.jit])
@pytest.mark.parametrize("unroll", [1, 5, 11])
def test_loops_count_as_often_as_they_run(change, unroll):
    """As much as XLA counts where nothing is a loop, up to their counters."""
    args = SQUARE, STACK
    flat = jax.jit(change(chain(12))).lower(*args).compile().cost_analysis()["flops"]
    found = compiled_cost(change(chain(unroll)), *args).flops
    assert flat >= 12 * 6 * PRODUCT
    assert found == pytest.approx(flat, rel=0.01)


def test_what_is_made_again_counts_again():
    """Forward, forward again and backward, of 12 products."""

    def powers(x):
        again = jax.checkpoint(lambda x, _: (jnp.sin(x @ x), None))
        return jnp.sum(lax.scan(again, x, length=12)[0])

    found = compiled_cost(jax.grad(powers), SQUARE).flops
    assert found == pytest.approx((1 + 1 + 2) * 12 * PRODUCT, rel=0.05)


def test_memory_is_the_compilers():
    sizes = jax.jit(chain(1)).lower(SQUARE, STACK).compile().memory_analysis()
    found = compiled_cost(chain(1), SQUARE, STACK).temporary_bytes
    assert found == sizes.temp_size_in_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize(("implementation", "power"), [("xla", 3), ("polynomial", 1)])
def test_attention_grows_from_one_tile_that_xla_counts(implementation, power):
    """At n = 4 no loop repeats; from 32 to 64 those of the exact form do."""

    def attend(x):
        return attention.tensor_attention(
            x, (x, x), (x, x), implementation=implementation, degree=2
        )

    def gradient(x):
        out, pullback = jax.vjp(attend, x)
        return pullback(out)

    for fn in (attend, gradient):
        one, shorter, longer = (
            jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32) for n in (4, 32, 64)
        )
        analysis = jax.jit(fn).lower(one).compile().cost_analysis()
        assert compiled_cost(fn, one).flops == analysis["flops"]
        ratio = compiled_cost(fn, longer).flops / compiled_cost(fn, shorter).flops
        assert ratio == pytest.approx(2**power, rel=0.03)


def branch(body):
    return lambda x: lax.cond(x[0, 0] > 0, body, lambda x: x, x)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: lax.while_loop(lambda x: x[0, 0] > 0, jnp.sin, x), "`while`"),
        (branch(lambda x: lax.fori_loop(0, 3, lambda _, x: x @ x, x)), "`cond`"),
    ],
)
def test_repeats_must_be_known(fn, words):
    with pytest.raises(ValueError, match=words):
        compiled_cost(fn, SQUARE)


def test_branches_without_loops_are_xlas():
    assert compiled_cost(branch(lambda x: x @ x), SQUARE).flops >= PRODUCT
