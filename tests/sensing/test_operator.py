"""Every ensemble against its measurement matrices in float64."""

import chex
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core.compat import x64
from jaxlr.sensing import operator as ops, reference


SHAPE = (6, 5)
SPARSE = (40, 50)  # 30 of 2000 entries: the route that forms no matrix


MAKERS = {
    "gaussian": lambda key: ops.gaussian(key, SHAPE, 13),
    "identity": lambda key: ops.identity(SHAPE),
    "entry_sampling": lambda key: ops.entry_sampling(key, SHAPE, 11),
    "entry_sampling_sparse": lambda key: ops.entry_sampling(key, SPARSE, 30),
    "entries": lambda key: ops.entries(
        np.array([0, 5, 2, 2]), np.array([4, 0, 1, 1]), SHAPE
    ),
}


@pytest.fixture(params=MAKERS, name="case")
def _case(request):
    with x64(True):
        operator = MAKERS[request.param](jr.key(3))
        n1, n2 = operator.shape
        rng = np.random.default_rng(0)
        data = {
            "x": rng.normal(size=(n1, n2)),
            "f": rng.normal(size=(n1, 3)),
            "g": rng.normal(size=(n2, 3)),
            "z": rng.normal(size=operator.measurement_shape),
        }
        yield operator, {name: jnp.asarray(value) for name, value in data.items()}


def close(got, want):
    np.testing.assert_allclose(
        np.asarray(got).ravel(), np.asarray(want).ravel(), atol=1e-12
    )


def test_values_are_those_of_the_definition(case):
    operator, d = case
    a = reference.matrices(operator)
    x, f, g = (np.asarray(d[name]) for name in "xfg")
    z = np.asarray(d["z"]).ravel()
    back = reference.adjoint(a, z)
    close(operator.apply(d["x"]), reference.apply(a, x))
    close(operator.apply_factors(d["f"], d["g"]), reference.apply(a, f @ g.T))
    close(operator.adjoint(d["z"]), back)
    close(operator.adjoint_matmul(d["z"], d["g"]), back @ g)
    left, right = operator.adjoint_factors(d["z"], d["f"], d["g"])
    close(left, back @ g)
    close(right, back.T @ f)


def test_adjoint_identity(case):
    operator, d = case
    left = jnp.sum(operator.apply(d["x"]) * d["z"])
    close(left, jnp.sum(d["x"] * operator.adjoint(d["z"])))


def test_gradient_of_apply_factors_is_adjoint_factors(case):
    operator, d = case
    grads = jax.grad(
        lambda f, g: jnp.sum(d["z"] * operator.apply_factors(f, g)), argnums=(0, 1)
    )(d["f"], d["g"])
    chex.assert_trees_all_close(
        grads, operator.adjoint_factors(d["z"], d["f"], d["g"]), atol=1e-12
    )


def test_vmap_equals_a_loop(case):
    operator, d = case
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x, x**2]), d)
    functions = (
        lambda d: operator.apply(d["x"]),
        lambda d: operator.apply_factors(d["f"], d["g"]),
        lambda d: operator.adjoint(d["z"]),
        lambda d: operator.adjoint_matmul(d["z"], d["g"]),
        lambda d: operator.adjoint_factors(d["z"], d["f"], d["g"]),
    )
    for fn in functions:
        got = jax.vmap(fn)(batch)
        loop = [fn(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(3)]
        want = jax.tree.map(lambda *x: jnp.stack(x), *loop)
        chex.assert_trees_all_close(got, want, atol=1e-12)


def test_float32_agrees_with_the_oracle(case):
    operator, d = case
    operator, d = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, (operator, d)
    )
    got = operator.apply_factors(d["f"], d["g"])
    assert got.dtype == jnp.float32
    f, g = (np.asarray(d[name], np.float64) for name in "fg")
    want = reference.apply(reference.matrices(operator), f @ g.T)
    np.testing.assert_allclose(np.asarray(got).ravel(), want, atol=1e-5)


def test_isotropy_is_the_mean_of_the_normal_operator():
    with x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
        for name in ("gaussian", "identity", "entry_sampling"):

            def normal(key, name=name):
                operator = MAKERS[name](key)
                return operator.adjoint(operator.apply(x)) / operator.isotropy

            mean = jax.vmap(normal)(jr.split(jr.key(0), 5000)).mean(0)
            np.testing.assert_allclose(mean, x, atol=0.12)


def test_gaussian_tiles_can_be_drawn_alone():
    operator = ops.gaussian(jr.key(7), SHAPE, 20)
    tile = jr.normal(jr.fold_in(jr.key(7), 1), (8, 30))
    np.testing.assert_array_equal(operator.raw[8:16], tile)
    longer = ops.gaussian(jr.key(7), SHAPE, 21)
    np.testing.assert_array_equal(longer.raw[:20], operator.raw)


@settings(max_examples=10, deadline=None)
@given(n1=st.integers(1, 6), n2=st.integers(1, 6), data=st.data())
def test_entry_sampling_is_without_replacement(n1, n2, data):
    m = data.draw(st.integers(1, n1 * n2))
    operator = ops.entry_sampling(jr.key(m), (n1, n2), m)
    rows, cols = np.asarray(operator.rows), np.asarray(operator.cols)
    flat = rows * n2 + cols
    assert rows.min() >= 0
    assert rows.max() < n1
    assert cols.min() >= 0
    assert cols.max() < n2
    assert len(np.unique(flat)) == m
    assert np.all(np.diff(flat) > 0)


def test_sparse_sampling_never_forms_the_matrix():
    n, k, m = 4096, 2, 1000
    with x64(False):
        operator = ops.entries(np.arange(m), np.arange(m), (n, n))
        f = jax.ShapeDtypeStruct((n, k), jnp.float32)
        z = jax.ShapeDtypeStruct((m,), jnp.float32)
        for name, args in (
            ("apply_factors", (f, f)),
            ("adjoint_matmul", (z, f)),
            ("adjoint_factors", (z, f, f)),
        ):
            fn = jax.jit(lambda *args, name=name: getattr(operator, name)(*args))
            memory = fn.lower(*args).compile().memory_analysis()
            assert memory is not None
            assert memory.temp_size_in_bytes < 4 * n * n / 16


def test_the_product_is_formed_from_an_eighth_of_the_entries_on():
    shape, k = (64, 50), 2
    f, g = jnp.ones((shape[0], k)), jnp.ones((shape[1], k))
    for m, is_formed in ((399, False), (400, True)):  # of 3200
        operator = ops.entry_sampling(jr.key(0), shape, m)
        z = jnp.ones(m)
        for fn, args in (
            (operator.apply_factors, (f, g)),
            (operator.adjoint_matmul, (z, g)),
            (operator.adjoint_factors, (z, f, g)),
        ):
            assert ("[64,50]" in str(jax.make_jaxpr(fn)(*args))) == is_formed


def test_numpy_input_may_meet_traced_indices():
    rng = np.random.default_rng(0)
    x, f, g = (rng.normal(size=s) for s in (SPARSE, (40, 2), (50, 2)))
    rows, cols = np.array([3, 7, 7]), np.array([1, 0, 49])

    @jax.jit
    def measurements(rows):
        operator = ops.entries(rows, cols, SPARSE)
        y = sensing.measure(operator, x).y
        back = operator.adjoint_factors(np.ones(3), f, g)  # pyright: ignore[reportArgumentType]
        return y, operator.apply(x), operator.apply_factors(f, g), back  # pyright: ignore[reportArgumentType]

    y, values, products, back = measurements(rows)
    np.testing.assert_allclose(y, x[rows, cols], rtol=1e-5)
    np.testing.assert_allclose(values, x[rows, cols], rtol=1e-5)
    np.testing.assert_allclose(products, (f @ g.T)[rows, cols], rtol=1e-5)
    assert back[0].shape == f.shape


def test_operators_are_pytrees():
    operator = ops.gaussian(jr.key(0), SHAPE, 3)
    doubled = jax.jit(lambda op: jax.tree.map(lambda leaf: 2 * leaf, op))(operator)
    assert doubled.shape == SHAPE
    np.testing.assert_allclose(doubled.raw, 2 * operator.raw)


@pytest.mark.misuse
def test_shapes_are_checked_by_name(case):
    operator, d = case
    wrong = jnp.ones((7, 3))
    calls = (
        ("x", lambda: operator.apply(wrong)),
        ("g", lambda: operator.apply_factors(d["f"], wrong)),
        ("f", lambda: operator.apply_factors(wrong, d["g"])),
        ("z", lambda: operator.adjoint(wrong)),
        ("z", lambda: operator.adjoint_matmul(wrong, d["g"])),
        ("g", lambda: operator.adjoint_matmul(d["z"], wrong)),
        ("z", lambda: operator.adjoint_factors(wrong, d["f"], d["g"])),
        ("f", lambda: operator.adjoint_factors(d["z"], wrong, d["g"])),
    )
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"`{name}` must have shape .*\(7, 3\)"):
            call()


@pytest.mark.misuse
def test_constructors_name_what_is_wrong():
    for make in (
        lambda: ops.identity((0, 3)),
        lambda: ops.gaussian(jr.key(0), (3,), 2),  # pyright: ignore[reportArgumentType]
        lambda: ops.entry_sampling(jr.key(0), (3, -1), 2),
    ):
        with pytest.raises(ValueError, match=r"`shape` must be two sizes"):
            make()
    with pytest.raises(
        ValueError, match=r"`num_measurements` must be an integer >= 1, got 0"
    ):
        ops.gaussian(jr.key(0), SHAPE, 0)
    with pytest.raises(ValueError, match=r"`num_measurements`.*1\.\.30.*got 31"):
        ops.entry_sampling(jr.key(0), SHAPE, 31)
    with pytest.raises(ValueError, match=r"`cols` must be in 0\.\.4, got .* 1 to 5"):
        ops.entries(np.array([0, 1]), np.array([1, 5]), SHAPE)
    with pytest.raises(ValueError, match=r"`rows` must be in 0\.\.5, got .* -1 to 1"):
        ops.entries(np.array([-1, 1]), np.array([1, 2]), SHAPE)
    with pytest.raises(ValueError, match=r"`cols` must be integers, got float"):
        ops.entries(np.array([0, 1]), np.array([1.0, 2.0]), SHAPE)
    with pytest.raises(ValueError, match=r"vectors of one length"):
        ops.entries(np.array([0, 1]), np.array([1]), SHAPE)
    with pytest.raises(ValueError, match=r"`num_measurements`.*integer.*got 20\.0"):
        ops.gaussian(jr.key(0), SHAPE, 20.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`num_measurements`.*integer.*got 20\.0"):
        ops.entry_sampling(jr.key(0), SHAPE, 20.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"n1 n2 < 2\*\*31.*\(65536, 32768\)"):
        ops.entry_sampling(jr.key(0), (2**16, 2**15), 5)
    with pytest.raises(ValueError, match=r"vectors of one length"):
        ops.entries([], [], SHAPE)


@pytest.mark.misuse
@pytest.mark.parametrize("shape", [SHAPE, SPARSE])  # dense products, and gathers
@pytest.mark.parametrize("bad", [-1, 90])
def test_a_traced_index_out_of_range_shows_as_nan(shape, bad):
    ones = jnp.ones((shape[0], 2)), jnp.ones((shape[1], 2))

    @jax.jit  # in a trace the values are unknown, so not checked
    def measurements(rows):
        operator = ops.entries(rows, jnp.arange(4), shape)
        return operator.apply(jnp.ones(shape)), operator.apply_factors(*ones)

    for got, good in zip(measurements(jnp.array([0, bad, 1, 3])), (1, 2), strict=True):
        np.testing.assert_array_equal(got, [good, np.nan, good, good])


@pytest.mark.misuse
def test_lists_will_do():
    shape: tuple[int, int] = list(SHAPE)  # pyright: ignore[reportAssignmentType]
    made = (
        ops.identity(shape),
        ops.gaussian(jr.key(0), shape, 3),
        ops.entry_sampling(jr.key(0), shape, 3),
        ops.entries([0, 1], [1, 2], shape),
    )
    for operator in made:
        assert operator.shape == SHAPE
        assert operator.apply(jnp.ones(SHAPE)).shape == operator.measurement_shape
