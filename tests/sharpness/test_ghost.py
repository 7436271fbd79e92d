"""mSAM of dense layers by factors: every way to call `dense`, against `scan`."""

import functools as ft
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import dense, sam_value_and_grad
from tests.sharpness import _models as models


def agree(fun, params, *args, num_shards=4, rho=0.4, rtol=1e-11, **settings):
    """Ghost against scan in float64."""
    with x64(True):
        cast = ft.partial(jnp.asarray, dtype=float)
        params, args = jax.tree.map(
            lambda z: cast(z) if eqx.is_inexact_array(z) else z, (params, args)
        )

        @eqx.filter_jit
        def both(params, args):
            make = ft.partial(
                sam_value_and_grad,
                fun,
                rho,
                num_shards=num_shards,
                return_info=True,
                **settings,
            )
            return [make(backend=b)(params, *args) for b in ("scan", "ghost")]

        want, got = both(params, args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
        return got


def test_dense_is_the_product():
    x, w = jr.normal(jr.key(0), (2, 4, 3)), jr.normal(jr.key(1), (3, 5))
    for f in (dense, jax.jit(dense), jax.vmap(dense, (0, None))):
        np.testing.assert_array_equal(f(x, w), x @ w)
    np.testing.assert_array_equal(dense(x, w, w[0]), x @ w + w[0])
    np.testing.assert_array_equal(dense(x[0, 0], w), x[0, 0] @ w)
    half = dense(x, w.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, x @ w.astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "num_shards", "is_normalized"),
    [(8, 2, True), (8, 8, False), (24, 3, True), (24, 8, True), (96, 4, False)],
)
def test_any_number_of_rows(num_rows, num_shards, is_normalized):
    """Few rows keep factors, many form gradients; odd counts run without halves."""
    args = models.mlp(), *models.data(num_rows)
    agree(models.mlp_loss, *args, num_shards=num_shards, is_normalized=is_normalized)


def test_a_model_applied_to_rows():
    x, y = models.data()
    agree(models.net_loss, models.Net(), x, y)


def tied(params, x, y):
    """One weight twice, with different numbers of rows, in any position."""
    w, v = params["w"], params["v"]
    h = jnp.tanh(dense(x, w))
    pairs = jax.vmap(dense, (1, None), 1)(jnp.stack([h, h**2], 2).swapaxes(1, 2), w)
    h = jnp.concatenate([dense(h, w), pairs.sum(1), pairs[:, 0]], 1)
    return models.cross_entropy(dense(jnp.sin(h), v), y)


@pytest.mark.parametrize("num_rows", [8, 64])
def test_one_weight_in_many_calls(num_rows):
    w = jr.normal(jr.key(0), (6, 6)) / 2
    params = {"w": w, "v": jr.normal(jr.key(1), (18, 3))}
    agree(tied, params, *models.data(num_rows))


@pytest.mark.parametrize("order", ["prqk", "rkpq", "qrkp"])
def test_inner_maps_over_any_axes(order):
    """Rows r and inputs k among the axes p and q of two maps."""
    outer, inner = order.index("p"), order.replace("p", "").index("q")

    def fun(w, x, y):
        x = jnp.einsum(f"rpqk->{order}", x)
        h = jax.vmap(jax.vmap(dense, (inner, None), -1), (outer, None), 1)(x, w)
        assert h.shape[1:] == (5, 2, 4)
        return jnp.mean(jnp.sin(h * y[:, None, None, None]) * jnp.array([[1.0], [3]]))

    x = jr.normal(jr.key(0), (8, 5, 4, 3))
    agree(fun, jr.normal(jr.key(1), (3, 2)), x, jnp.arange(8.0))


def test_other_leaves_frozen_weights_and_dead_branches():
    """Exact with anything around the layers; other leaves are one for each shard."""
    frozen = np.asarray(jr.normal(jr.key(5), (6, 6)))

    def fun(params, x, y):
        x = dense(x, jnp.asarray(frozen, x.dtype)) * params["scale"]
        _ = dense(x, params["w"])
        h, _ = jax.lax.scan(
            lambda h, k: (jnp.tanh(h @ k), None), dense(x, params["w"]), params["k"]
        )
        return models.cross_entropy(dense(h, params["v"], params["b"]), y)

    params = {
        "w": jr.normal(jr.key(0), (6, 5)),
        "v": jr.normal(jr.key(1), (5, 3)),
        "k": jr.normal(jr.key(2), (2, 5, 5)),
        "scale": jnp.ones(6),
        "b": jnp.zeros(3),
    }
    agree(fun, params, *models.data())
    only = {"w": True, "v": False, "k": False, "scale": True, "b": False}
    agree(fun, params, *models.data(), perturb_filter=only)
    agree(fun, params, *models.data(), perturb_filter=lambda w: w.ndim != 2)


def test_checkpointed_parts_without_a_dense_and_custom_rules():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))

    def fun(params, x, y):
        h = jax.checkpoint(jnp.sin)(dense(x, params[0][0]))
        h = jax.jit(lambda h: cube(jax.nn.relu(dense(h, params[1][0]))))(h)
        return models.cross_entropy(dense(h, params[2][0]), y)

    params = [(w,) for w, _ in models.mlp()]
    agree(fun, params, *models.data())


def test_a_zero_gradient_stays_one():
    def fun(w, x, y):
        return 0 * jnp.sum(dense(x, w)) + y.mean()

    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x, w = jnp.ones((8, 3), dtype), jnp.ones((3, 2), dtype)
        transform = sam_value_and_grad(fun, 0.1, num_shards=4, backend="ghost")
        value, grad = jax.jit(transform)(w, x, jnp.ones(8, dtype))
        assert value == 1
        np.testing.assert_array_equal(grad.astype(float), 0)


def test_bfloat16_is_near_float32():
    args = models.mlp(dtype=jnp.float32), *models.data(dtype=jnp.float32)
    transform = sam_value_and_grad(
        models.mlp_loss, 0.2, num_shards=4, backend="ghost", return_info=True
    )
    want = jax.jit(transform)(*args)
    half = jax.tree.map(lambda z: z.astype(jnp.bfloat16), args[:2])
    got = jax.jit(transform)(*half, args[2])
    assert got[0][1].grad_norm.dtype == jnp.float32
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(a.astype(float), b, atol=0.05 * np.abs(b).max())


def test_maps_and_derivatives_of_it():
    """By rho, and by the parameters, to which the perturbation is a constant."""
    with x64(True):
        x, y = models.data()
        params = models.mlp()

        def make(params, rho, backend):
            return sam_value_and_grad(
                models.mlp_loss, rho, num_shards=4, backend=backend
            )(params, x, y)[1][0]

        def both(backend):
            grads = ft.partial(make, backend=backend)
            swept = jax.vmap(grads, (None, 0))(params, jnp.array([0.1, 0.3]))
            return swept, [
                jax.jvp(grads, (params, 0.3), tangents)[1]
                for tangents in (
                    (jax.tree.map(jnp.zeros_like, params), 1.0),
                    (params, 0.0),
                )
            ]

        got, want = jax.jit(lambda: (both("ghost"), both("scan")))()
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max(), rtol=1e-9)


def test_the_weights_have_one_product_for_all_shards():
    """With few rows no array of the program holds a weight for each shard."""
    transform = sam_value_and_grad(models.mlp_loss, 0.1, num_shards=4, backend="ghost")
    params = models.mlp((6, 20, 30, 3))
    few, many = (
        str(jax.make_jaxpr(transform)(params, *models.data(n))) for n in (8, 96)
    )
    assert not re.search(r"\[\d,20,30\]", few)
    assert re.search(r"\[\d,20,30\]", many)  # cheaper than factors of so many rows


@pytest.mark.misuse
def test_misuse_is_named():
    x, y = models.data(8)
    w = jr.normal(jr.key(0), (6, 6))
    head = jnp.ones((6, 3))

    def call(fun, params: Any = w):
        make = ft.partial(sam_value_and_grad, fun, 0.1, num_shards=2)
        make()(params, x, y)  # any other backend takes it
        make(backend="ghost")(params, x, y)

    with pytest.raises(ValueError, match=r"no leaf .* to `sharpness.dense`.*'scan'"):
        call(lambda w, x, y: models.cross_entropy(x @ w @ head, y))
    with pytest.raises(ValueError, match=r"must be a leaf.*\(6, 6\) that is computed"):
        call(lambda w, x, y: models.cross_entropy(dense(x, w.T) @ head, y))
    with pytest.raises(ValueError, match=r"\['w'\].* in another way too.*'scan'"):
        call(
            lambda p, x, y: (
                models.cross_entropy(dense(x, p["w"]) @ head, y) + jnp.sum(p["w"] ** 2)
            ),
            {"w": w},
        )
    with pytest.raises(ValueError, match=r"in another way too"):
        call(lambda w, x, y: jnp.mean(dense(dense(w, w), head)) * y.mean())
    with pytest.raises(ValueError, match=r"inside of `scan` is not.*'scan'"):
        call(
            lambda w, x, y: models.cross_entropy(
                jax.lax.scan(lambda h, _: (dense(h, w), None), x, length=2)[0] @ head, y
            )
        )
    with pytest.raises(ValueError, match=r"over a batch of weights"):
        call(
            lambda w, x, y: jax.vmap(dense, (None, 0))(x, w).var(),
            jr.normal(jr.key(0), (2, 6, 6)),
        )
    with pytest.raises(ValueError, match=r"in another way too"):
        call(
            lambda w, x, y: jnp.mean(
                jax.vmap(jax.grad(lambda x: jnp.sum(jnp.sin(dense(x, w)))))(x) ** 2
            )
        )
    with pytest.raises(ValueError, match=r"must be of real numbers.*complex64"):
        call(lambda w, x, y: jnp.mean(jnp.abs(dense(x, w))), w.astype(complex))
    with pytest.raises(ValueError, match=r"`weight` must be a matrix.*\(3, 6\)"):
        dense(x, w[:3])
    with pytest.raises(ValueError, match=r"`weight` must be a matrix.*\(6,\)"):
        dense(x, w[0])
