"""Every ensemble against its measurement matrices in float64."""

import functools
import inspect
import typing

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sensing import operator as ops
from tests.sensing import reference


SHAPE = (6, 5)
SPARSE = (40, 50)  # 30 of 2000 entries: the route that forms no matrix
NEEDS = {"symmetric_gaussian": (6, 6), "hadamard": (8, 4)}  # shapes that they take


def drawn():
    """Every random ensemble of the family, in every storage that it offers."""
    for name, make in vars(ops).items():
        if not inspect.isfunction(make):
            continue
        parameters = inspect.signature(make).parameters
        if list(parameters)[:3] != ["key", "shape", "num_measurements"]:
            continue
        shape = NEEDS.get(name, SHAPE)
        if "storage" not in parameters:
            yield name, functools.partial(make, shape=shape, num_measurements=11)
            continue
        for storage in typing.get_args(typing.get_type_hints(make)["storage"]):
            yield (
                f"{name}_{storage}",
                functools.partial(
                    make, shape=shape, num_measurements=13, storage=storage
                ),
            )


MAKERS = dict(drawn()) | {
    "identity": lambda key: ops.identity(SHAPE),
    "entry_sampling_sparse": lambda key: ops.entry_sampling(key, SPARSE, 30),
    "entries": lambda key: ops.entries(
        np.array([0, 5, 2, 2]), np.array([4, 0, 1, 1]), SHAPE
    ),
    "kronecker": lambda key: ops.kronecker(
        jr.normal(key, (4, SHAPE[0])), jr.normal(jr.fold_in(key, 1), (7, SHAPE[1]))
    ),
    "hadamard_sparse": lambda key: ops.hadamard(key, (16, 32), 30),
    "dct_sparse": lambda key: ops.dct(key, (12, 25), 30),
}


def test_every_ensemble_has_a_case():
    """Subclasses of `Operator`, wherever the family has them."""
    known = {type(make(key=jr.key(0))) for make in MAKERS.values()}
    assert {x for x in vars(ops).values() if inspect.isclass(x)} - known == {
        ops.Operator
    }


@eqx.filter_jit
def call(operator, name, *args):
    """A method, compiled: transforms are many small operations."""
    return getattr(operator, name)(*args)


@pytest.fixture(params=MAKERS, name="case")
def _case(request):
    with x64(True):
        operator = MAKERS[request.param](key=jr.key(3))
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
    close(call(operator, "apply", d["x"]), reference.apply(a, x))
    close(call(operator, "apply_factors", d["f"], d["g"]), reference.apply(a, f @ g.T))
    close(call(operator, "adjoint", d["z"]), back)
    close(call(operator, "adjoint_matmul", d["z"], d["g"]), back @ g)
    left, right = call(operator, "adjoint_factors", d["z"], d["f"], d["g"])
    close(left, back @ g)
    close(right, back.T @ f)


def test_adjoint_identity(case):
    operator, d = case
    left = jnp.sum(call(operator, "apply", d["x"]) * d["z"])
    close(left, jnp.sum(d["x"] * call(operator, "adjoint", d["z"])))


def test_gradient_of_apply_factors_is_adjoint_factors(case):
    operator, d = case

    def value(f, g):
        return jnp.sum(d["z"] * call(operator, "apply_factors", f, g))

    grads = jax.grad(value, argnums=(0, 1))(d["f"], d["g"])
    chex.assert_trees_all_close(
        grads, call(operator, "adjoint_factors", d["z"], d["f"], d["g"]), atol=1e-12
    )


@pytest.mark.slow
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
        jitted = jax.jit(fn)
        got = jax.jit(jax.vmap(fn))(batch)
        loop = [jitted(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(3)]
        want = jax.tree.map(lambda *x: jnp.stack(x), *loop)
        chex.assert_trees_all_close(got, want, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_low_precision_agrees_with_the_oracle(name, dtype):
    """Vectors in `dtype` against the very same numbers in float64, and <Ax, z>."""
    operator = MAKERS[name](key=jr.key(3))
    n1, n2 = operator.shape
    keys = jr.split(jr.key(0), 3)
    f, g = jr.normal(keys[0], (n1, 3), dtype), jr.normal(keys[1], (n2, 3), dtype)
    z = jr.normal(keys[2], operator.measurement_shape, dtype)
    x = (f @ g.T).astype(dtype)
    tolerance = 40 * float(jnp.finfo(dtype).eps)
    got, back = call(operator, "apply", x), call(operator, "adjoint", z)
    assert got.dtype == jnp.promote_types(dtype, jnp.result_type(got))
    x64_, z64 = np.asarray(x, np.float64), np.asarray(z, np.float64)
    a = reference.matrices(operator)
    want = reference.apply(a, x64_)
    scale = np.sqrt(np.sum(want**2)) + 1
    got64 = np.asarray(got, np.float64).ravel()
    np.testing.assert_allclose(got64, want, atol=tolerance * scale)
    left = got64 @ z64.ravel()
    right = np.sum(x64_ * np.asarray(back, np.float64))
    assert abs(left - right) <= tolerance * scale * np.linalg.norm(z64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, m in drawn()])
def test_isotropy_is_the_mean_of_the_normal_operator(name):
    def normal(key, x):
        operator = MAKERS[name](key=key)
        return operator.adjoint(operator.apply(x)) / operator.isotropy

    shape = MAKERS[name](key=jr.key(0)).shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x = (x + x.T) / 2 if name.startswith("symmetric") else x
    many = jax.jit(jax.vmap(normal, in_axes=(0, None)))
    mean = many(jr.split(jr.key(0), 4000), x).mean(0)
    np.testing.assert_allclose(mean, x, atol=0.2)


def test_isotropy_of_a_fixed_ensemble_is_the_mean_eigenvalue():
    with x64(True):
        operator = MAKERS["kronecker"](key=jr.key(3))
        a = reference.matrices(operator).reshape(-1, SHAPE[0] * SHAPE[1])
        mean = np.mean(np.linalg.eigvalsh(a.T @ a))
        np.testing.assert_allclose(operator.isotropy, mean, rtol=1e-12)


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_storage_changes_no_entry(storage):
    make = ops.gaussian if storage == "regenerate" else ops.rademacher
    dense = make(jr.key(5), (9, 7), 21)
    other = make(jr.key(5), (9, 7), 21, storage=storage)
    np.testing.assert_array_equal(dense.rows.to_dense(), other.rows.to_dense())
    if storage == "packed":
        long = ops.rademacher(jr.key(5), (40, 50), 21, storage="packed")
        assert long.rows.words.nbytes <= 21 * 2000 * 4 / 30
    else:
        assert [x.shape for x in jax.tree.leaves(other)] == [()]  # the key alone


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_residual_gradient_is_the_gradient_of_the_loss(case, loss):
    operator, d = case

    def value(f, g):
        gap = jnp.abs(operator.apply_factors(f, g) - d["z"])
        if loss == "huber":
            return jnp.sum(jnp.where(gap <= 0.7, gap**2 / 2, 0.7 * (gap - 0.35)))
        return jnp.sum(gap) if loss == "l1" else jnp.sum(gap**2) / 2

    want = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(d["f"], d["g"])
    settings = {"loss": loss, "huber_delta": 0.7}

    @jax.jit
    def gradient(f):
        return ops.residual_gradient(operator, f, d["g"], d["z"], **settings)

    got = gradient(d["f"])
    chex.assert_trees_all_close(got, (want[0], *want[1]), atol=1e-11)
    again, adjoint = jax.jit(
        lambda f: ops.residual_adjoint(operator, f, d["g"], d["z"], **settings)
    )(d["f"])
    chex.assert_trees_all_close(
        (again, adjoint @ d["g"], adjoint.T @ d["f"]), got, atol=1e-11
    )
    batch = jnp.stack([d["f"], 2 * d["f"]])
    many = jax.jit(jax.vmap(gradient))(batch)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], many), got, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, m in drawn() if m(key=jr.key(0)).has_kernel])
def test_the_kernel_is_the_same_gradient(name):
    operator = MAKERS[name](key=jr.key(3))
    f, g = (jr.normal(jr.key(i), (n, 3)) for i, n in enumerate(operator.shape))
    y = jr.normal(jr.key(9), operator.measurement_shape)
    for loss in ("l2", "l1", "huber"):
        got, want = (
            ops.residual_gradient(operator, f, g, y, loss=loss, implementation=which)
            for which in ("pallas_interpret", "xla")
        )
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.misuse
def test_there_is_no_kernel_for_entries():
    operator = ops.identity(SHAPE)
    f, g = jnp.ones((6, 1)), jnp.ones((5, 1))
    with pytest.raises(ValueError, match=r"'pallas' is for ensembles of.*Identity"):
        ops.residual_gradient(operator, f, g, jnp.ones(SHAPE), implementation="pallas")
    with pytest.raises(ValueError, match=r"loss 'l3'.*l1, l2, huber|loss 'l3'"):
        ops.residual_gradient(operator, f, g, jnp.ones(SHAPE), loss="l3")  # pyright: ignore[reportArgumentType]


def test_gaussian_tiles_can_be_drawn_alone():
    operator = ops.gaussian(jr.key(7), SHAPE, 20)
    tile = jr.normal(jr.fold_in(jr.key(7), 1), (8, 30))
    np.testing.assert_array_equal(operator.rows.to_dense()[8:16], tile)
    longer = ops.gaussian(jr.key(7), SHAPE, 21)
    np.testing.assert_array_equal(longer.rows.to_dense()[:20], operator.rows.to_dense())


def test_operators_are_pytrees():
    operator = ops.gaussian(jr.key(0), SHAPE, 3)
    doubled = jax.jit(lambda op: jax.tree.map(lambda leaf: 2 * leaf, op))(operator)
    assert doubled.shape == SHAPE
    np.testing.assert_allclose(doubled.rows.raw, 2 * operator.rows.raw)


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
        lambda: ops.rank_one(jr.key(0), (3, 0), 2),
        lambda: ops.rademacher(jr.key(0), (0, 3), 2),
        lambda: ops.hadamard(jr.key(0), (4, 0), 2),
        lambda: ops.dct(jr.key(0), (4, 0), 2),
    ):
        with pytest.raises(ValueError, match=r"`shape` must be two sizes"):
            make()
    with pytest.raises(
        ValueError, match=r"`num_measurements` must be an integer >= 1, got 0"
    ):
        ops.gaussian(jr.key(0), SHAPE, 0)
    with pytest.raises(ValueError, match=r"`num_measurements`.*1\.\.30.*got 31"):
        ops.entry_sampling(jr.key(0), SHAPE, 31)
    with pytest.raises(ValueError, match=r"`cols` must be in \[0, 4\], got .*5"):
        ops.entries(np.array([0, 1]), np.array([1, 5]), SHAPE)
    with pytest.raises(ValueError, match=r"`rows` must be in \[0, 5\], got .*-1"):
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
    with pytest.raises(ValueError, match=r"powers of 2 for `hadamard`, got \(6, 8\)"):
        ops.hadamard(jr.key(0), (6, 8), 5)
    with pytest.raises(ValueError, match=r"`shape` must be square.*\(6, 5\)"):
        ops.symmetric_gaussian(jr.key(0), SHAPE, 5)
    with pytest.raises(ValueError, match=r"'dens'.*did you mean 'dense'"):
        ops.gaussian(jr.key(0), SHAPE, 5, storage="dens")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'regenerate'.*dense, packed"):
        ops.rademacher(jr.key(0), SHAPE, 5, storage="regenerate")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`q` must be a matrix, got shape \(3,\)"):
        ops.kronecker(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"`p` must be real, got complex64"):
        ops.kronecker(jnp.ones((2, 3), jnp.complex64), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`x` must be real, got complex64"):
        ops.identity(SHAPE).apply(jnp.ones(SHAPE, jnp.complex64))
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.5, got 6"):
        ops.identity(SHAPE).rip_constant(jr.key(0), rank=6)
    with pytest.raises(
        ValueError, match=r"`num_steps` must be an integer >= 0, got -1"
    ):
        ops.identity(SHAPE).rip_constant(jr.key(0), rank=1, num_steps=-1)
    f, g, y = jnp.ones((6, 1)), jnp.ones((5, 1)), jnp.ones(SHAPE)
    with pytest.raises(
        ValueError, match=r"`huber_delta` must be in \(0, inf\], got -1"
    ):
        ops.residual_gradient(
            ops.identity(SHAPE), f, g, y, loss="huber", huber_delta=-1.0
        )
    with pytest.raises(
        ValueError, match=r"`num_samples` must be an integer >= 1, got 0"
    ):
        ops.identity(SHAPE).sign_rip_scale(jr.key(0), rank=1, num_samples=0)


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
