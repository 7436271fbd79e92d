"""Every form against sums over all tuples in float64: values, gradients, lanes."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import attention
from jaxlr.attention import _polynomial
from jaxlr.core import compat
from tests.attention._arrays import draw


def definition(query, keys, values, is_seen=lambda *place: True, scale=None):
    """By loops; `is_seen(b, n, i, *positions)`."""
    query, *sets = (np.asarray(x, np.float64) for x in (query, *keys, *values))
    keys, values = sets[: len(keys)], sets[len(keys) :]
    batch, num_queries, heads, features = query.shape
    scale = features**-0.5 if scale is None else scale
    out = np.zeros(query.shape)
    lse = np.full(query.shape[:3], -np.inf)
    for b, n, i in itertools.product(*map(range, (batch, heads, num_queries))):
        scores, products = [], []
        for place in itertools.product(*(range(k.shape[1]) for k in keys)):
            if is_seen(b, n, i, *place):
                key, value = (
                    np.prod(
                        [
                            x[b, j, n * x.shape[2] // heads]
                            for x, j in zip(part, place, strict=True)
                        ],
                        axis=0,
                    )
                    for part in (keys, values)
                )
                scores.append(scale * query[b, i, n] @ key)
                products.append(value)
        if scores:
            lse[b, i, n] = np.logaddexp.reduce(scores)
            out[b, i, n] = np.exp(np.array(scores) - lse[b, i, n]) @ products
    return out, lse


MASK = np.random.default_rng(0).random((2, 1, 7, 5, 6)) < 0.5
LENGTHS = np.array([[3, 5], [6, 2]])  # mode, sequence
CASES = {
    "all": ({}, lambda *place: True),
    "causal": ({"is_causal": True}, lambda b, n, i, j, k: max(j, k) <= i),
    "ordered": ({"is_ordered": True}, lambda b, n, i, j, k: j <= k),
    "ordered_causal": (
        {"is_ordered": True, "is_causal": True},
        lambda b, n, i, j, k: j <= k <= i,
    ),
    "window": (
        {"local_window_size": 1},
        lambda b, n, i, j, k: max(abs(i - j), abs(i - k)) <= 1,
    ),
    "windows": (
        {"local_window_size": ((2, 1), None)},
        lambda b, n, i, j, k: i - 2 <= j <= i + 1,
    ),
    "causal_windows": (
        {"local_window_size": (3, (1, 4)), "is_causal": True},
        lambda b, n, i, j, k: i - 3 <= j <= i and i - 1 <= k <= i,
    ),
    "lengths": (
        {"key_lengths": (LENGTHS[0], LENGTHS[1])},
        lambda b, n, i, j, k: j < LENGTHS[0, b] and k < LENGTHS[1, b],
    ),
    "key_mask": (
        {"mask": jnp.asarray(MASK[:, :, :1, :, :1])},
        lambda b, n, i, j, k: MASK[b, 0, 0, j, 0],
    ),
}
EXACT = CASES | {
    "mask": ({"mask": jnp.asarray(MASK)}, lambda b, n, i, j, k: MASK[b, 0, i, j, k]),
    "ordered_windows": (
        {"is_ordered": True, "local_window_size": 2},
        lambda b, n, i, j, k: j <= k and max(abs(i - j), abs(i - k)) <= 2,
    ),
}


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_forms_are_the_definition(x64, name, implementation):
    options, is_seen = EXACT[name]
    arrays = draw((5, 6))
    out, lse = attention.tensor_attention(
        *arrays, **options, implementation=implementation, return_residual=True
    )
    want, want_lse = definition(*arrays, is_seen)
    np.testing.assert_allclose(out, want, atol=1e-12)
    np.testing.assert_allclose(lse, want_lse, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_polynomial_is_the_definition_with_another_exponential(x64, name):
    options, is_seen = CASES[name]
    query, keys, values = draw((5, 6), size=0.4)
    call = jax.jit(
        lambda *arrays: attention.tensor_attention(
            *arrays,
            **options,
            implementation="polynomial",
            degree=10,
            return_residual=True,
        )
    )
    out, lse = call(query, keys, values)
    want, want_lse = definition(query, keys, values, is_seen)
    np.testing.assert_allclose(out, want, atol=1e-7)
    np.testing.assert_allclose(lse, want_lse, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "polynomial"])
@pytest.mark.parametrize("sizes", [(9,), (3, 4, 5)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_any_number_of_modes(x64, sizes, implementation, is_causal):
    arrays = draw(sizes, size=0.4)
    options = {"degree": 12} if implementation == "polynomial" else {}
    out = attention.tensor_attention(
        *arrays, is_causal=is_causal, implementation=implementation, **options
    )
    want, _ = definition(*arrays, lambda b, n, i, *js: not is_causal or max(js) <= i)
    np.testing.assert_allclose(out, want, atol=1e-7 if options else 1e-12)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_one_mode_is_ordinary_attention(implementation, is_causal):
    query, (key,), (value,) = draw((9,), heads=4, dtype=jnp.float32)
    key, value = key[:, :, :2], value[:, :, :2]
    window, lengths = (2, 3), jnp.array([9, 4])
    out = attention.tensor_attention(
        query,
        (key,),
        (value,),
        is_causal=is_causal,
        local_window_size=(window,),
        key_lengths=lengths,
        implementation=implementation,
    )
    want = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        local_window_size=window,
        key_value_seq_lengths=lengths,
    )
    # A query that sees nothing finds 0 here, and the mean of all values there.
    places = jnp.arange(7)
    is_seen = jnp.maximum(places - 2, 0)[None] < lengths[:, None]
    np.testing.assert_allclose(
        out, jnp.where(is_seen[..., None, None], want, 0), atol=2e-6
    )


def test_grouped_heads_share_their_keys(x64):
    query, keys, values = draw((5, 6), heads=4)
    keys, values = ((x[:, :, :2], y[:, :, :1]) for x, y in (keys, values))
    out = attention.tensor_attention(query, keys, values)
    np.testing.assert_allclose(out, definition(query, keys, values)[0], atol=1e-12)


def summed(arrays, implementation, options, weight):
    """A loss of outputs and log-sum-exps."""
    out, lse = attention.tensor_attention(
        *arrays, **options, implementation=implementation, return_residual=True
    )
    is_seen = jnp.isfinite(lse)
    lse = jnp.sin(jnp.where(is_seen, lse, 0)) * is_seen
    return jnp.sum(weight * out) + jnp.sum(weight[..., 0] * lse)


TILED = {
    "all": {},
    "causal": {"is_causal": True},
    "windows": {"local_window_size": ((4, 2), (9, 0))},
    "causal_window": {"local_window_size": 5, "is_causal": True},
    "ordered": {"is_ordered": True, "is_causal": True},
    "lengths": {"key_lengths": (jnp.array([19, 0]), jnp.array([3, 280]))},
    "mask": {
        "mask": jnp.asarray(np.random.default_rng(0).random((1, 2, 21, 1, 300)) < 0.3)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TILED)
def test_values_and_gradients_over_many_tiles(x64, name):
    """No size is a multiple of a tile's."""
    options = TILED[name]
    arrays = draw((19, 300), queries=21)
    weight = jr.normal(jr.key(9), arrays[0].shape)
    found, wanted = (
        jax.jit(
            jax.value_and_grad(
                lambda arrays, form=form: summed(arrays, form, options, weight)
            )
        )(arrays)
        for form in ("xla", "reference")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "causal", "windows", "ordered", "lengths"])
def test_values_and_gradients_of_polynomials_over_many_chunks(x64, name, monkeypatch):
    """Of five rows; sizes are no multiples of them, nor chunks of a square number."""
    options = TILED[name]
    arrays = draw((19, 300), queries=21, size=0.3)
    weight = jr.normal(jr.key(9), arrays[0].shape)
    num_features = attention.num_features(4, 8)
    monkeypatch.setattr(_polynomial, "_CHUNK", 4 * num_features * 5 * 5)
    monkeypatch.setattr(_polynomial, "_ROWS", 2)
    found, wanted = (
        jax.jit(
            jax.value_and_grad(
                lambda arrays, form=form, more=more: summed(
                    arrays, form, options | more, weight
                )
            )
        )(arrays)
        for form, more in (("polynomial", {"degree": 8}), ("reference", {}))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "polynomial"])
def test_gradients_of_three_modes(x64, implementation):
    arrays = draw((3, 4, 5), queries=3, heads=1, size=0.4)
    weight = jr.normal(jr.key(9), arrays[0].shape)
    options = {"degree": 12} if implementation == "polynomial" else {}
    found, wanted = (
        jax.jit(jax.grad(lambda x, a=args: summed(x, *a, weight)))(arrays)
        for args in ((implementation, options), ("reference", {}))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11 if not options else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_float32(is_causal, implementation):
    """Scores have a standard deviation above 1; attention to all alike would fail."""
    query, *sets = draw((40, 50), queries=40, features=16, dtype=jnp.float32)
    keys, values = (
        tuple(x[:, :, : mode + 1] for mode, x in enumerate(s)) for s in sets
    )
    arrays = 0.55 * query, keys, values
    weight = jr.normal(jr.key(9), arrays[0].shape)
    options = {"is_causal": is_causal}

    def both(arrays, implementation):
        out = attention.tensor_attention(
            *arrays, **options, implementation=implementation
        )
        grads = jax.grad(summed)(arrays, implementation, options, weight)
        return out, grads

    out, grads = both(arrays, implementation)
    with compat.x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), arrays)
        want, want_grads = both(wide, "reference")
        uniform = both((0 * wide[0], *wide[1:]), "reference")[0]
        scores = jnp.einsum("bind,bjed,bknd->bnijk", wide[0], *wide[1]) / 4
        assert scores.std() >= 1
        assert jnp.abs(uniform - want).max() > 0.1
    np.testing.assert_allclose(out, want, atol=2e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_bfloat16_stays_and_is_close(implementation):
    arrays = draw((8, 9), dtype=jnp.bfloat16)
    out, lse = attention.tensor_attention(
        *arrays, implementation=implementation, return_residual=True
    )
    assert out.dtype == jnp.bfloat16
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(
        out.astype(jnp.float32), definition(*arrays)[0], atol=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "polynomial"])
def test_lanes_and_the_order_of_modes(x64, implementation):
    query, keys, values = draw((5, 6), size=0.4)
    weight = jr.normal(jr.key(9), query.shape)
    options = {"local_window_size": (2, (3, 1))}
    swapped = {"local_window_size": ((3, 1), 2)}

    def slopes(arrays, options=options):
        return jax.grad(summed)(arrays, implementation, options, weight)

    one = jax.jit(slopes)
    found = one((query, keys, values))
    other = jax.jit(lambda arrays: slopes(arrays, swapped))(
        (query, keys[::-1], values[::-1])
    )
    np.testing.assert_allclose(found[0], other[0], atol=1e-11)
    np.testing.assert_allclose(found[1][0], other[1][1], atol=1e-11)
    lanes = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), (query, keys, values))
    mapped = jax.jit(jax.vmap(slopes))(lanes)
    for i, factor in enumerate((1, 0.5)):
        want = one(jax.tree.map(lambda x, f=factor: f * x, (query, keys, values)))
        got = jax.tree.map(lambda x, i=i: x[i], mapped)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.slow
def test_gradients_have_forward_derivatives(x64):
    arrays = draw((19, 300), queries=21)
    weight = jr.normal(jr.key(9), arrays[0].shape)
    tangents = jax.tree.map(lambda x: jnp.cos(7 * x), arrays)

    found, want = (
        jax.jvp(
            jax.grad(lambda x, f=form: summed(x, f, {"is_causal": True}, weight)),
            (arrays,),
            (tangents,),
        )[1]
        for form in ("xla", "reference")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
