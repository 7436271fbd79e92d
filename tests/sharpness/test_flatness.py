"""Flatness of a small net against its dense Hessian, in float64."""

from collections.abc import Callable
import functools

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import flatness


class Net(eqx.Module):
    """A net whose leaves are not all arrays of floats."""

    layers: list
    counter: jax.Array
    activation: Callable
    scale: float = 1.5

    def __call__(self, x):
        x = self.activation(self.layers[0](x))
        return self.scale * self.layers[1](x)


def net(key=0):
    keys = jr.split(jr.key(key))
    layers = [eqx.nn.Linear(5, 8, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1])]
    return Net(layers, jnp.arange(3), jnp.tanh)


def data(num=24):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(num, 5))), jnp.asarray(
        rng.integers(3, size=num)
    )


def cross_entropy(model, x, labels):
    logits = jax.nn.log_softmax(jax.vmap(model)(x))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))


def flat_loss(model, *batch):
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    w, restore = ravel_pytree(arrays)
    return (
        lambda v: cross_entropy(eqx.combine(restore(v), rest), *batch),
        w,
    )


@pytest.fixture(scope="module")
def dense():
    """The loss, the parameters, and the Hessian, in NumPy."""
    with x64(True):
        loss, w = flat_loss(net(), *data())
        return np.asarray(jax.jit(jax.hessian(loss))(w))


def quadratic(w, *args):
    """Curvatures -3, -1 and 2, its minimum elsewhere."""
    return -0.5 * jnp.sum(jnp.array([3.0, 1.0, -2.0]) * w**2) + 2 * jnp.sum(w)


def test_hvp_of_a_module(dense):
    with x64(True):
        model = net()
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        w, restore = ravel_pytree(arrays)
        v = jnp.asarray(np.random.default_rng(1).normal(size=w.size))
        whole = eqx.combine(restore(v), rest)
        hv = eqx.filter_jit(flatness.hvp)(cross_entropy, model, whole, *data())
        bare = flatness.hvp(cross_entropy, model, restore(v), *data())
        np.testing.assert_allclose(ravel_pytree(hv)[0], dense @ v, atol=1e-13)
        np.testing.assert_allclose(ravel_pytree(bare)[0], dense @ v, atol=1e-13)
    assert hv.counter is None
    assert hv.layers[0].weight.shape == (8, 5)


@pytest.mark.parametrize("is_double", [True, False])
def test_lanczos_25_against_the_dense_eigenvalue(dense, is_double):
    want = np.linalg.eigvalsh(dense)[-1]
    with x64(is_double):
        model, batch = net(), data()
        keys = jr.split(jr.key(0), 5)
        got = eqx.filter_jit(
            jax.vmap(lambda k: flatness.lambda_max(k, cross_entropy, model, *batch))
        )(keys)
        few = flatness.lambda_max(keys[0], cross_entropy, model, *batch, num_steps=3)
        got, few = (flatness.LargestEigenvalue(*map(np.asarray, x)) for x in (got, few))
    if not is_double:  # another net: random bits depend on the type
        with x64(False):
            loss, w = flat_loss(model, *batch)
            want = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(loss))(w)))[-1]
    np.testing.assert_allclose(got.value, want, rtol=1e-3)
    assert np.all(np.abs(got.value - want) <= got.residual + 1e-6)
    assert few.residual > 1e-3  # 25 were needed


def test_the_largest_eigenvalue_is_algebraic():
    for fun, want in (
        (quadratic, 2),
        (lambda w: -quadratic(w), 3),
        (lambda w: -jnp.sum(w**4), -12),
        (jnp.sum, 0),
    ):
        # 25 steps, 3 parameters.
        got = jax.jit(lambda key, w, f=fun: flatness.lambda_max(key, f, w))(
            jr.key(0), jnp.ones(3)
        )
        np.testing.assert_allclose(got.value, want, rtol=1e-5)


def test_hutchinson_100_is_within_three_standard_errors(dense):
    with x64(True):
        model, batch = net(), data()

        def trace(key):
            return flatness.hessian_trace(
                key, cross_entropy, model, *batch, batch_size=50
            )

        value, error = map(np.asarray, jax.jit(jax.vmap(trace))(jr.split(jr.key(0), 8)))
    assert np.all(np.abs(value - np.trace(dense)) < 3 * error)
    off = np.sum(dense**2) - np.sum(np.diag(dense) ** 2)
    np.testing.assert_allclose(error, np.sqrt(2 * off / 100), rtol=0.35)


def test_density_moments_and_mass(dense):
    with x64(True):
        model, batch = net(), data()
        got = eqx.filter_jit(flatness.spectral_density)(
            jr.key(0),
            cross_entropy,
            model,
            *batch,
            num_probes=60,
            num_steps=20,
            batch_size=20,
        )
        nodes, weights, grid, density = map(np.asarray, got)
    exact = np.linalg.eigvalsh(dense)
    assert nodes.min() >= exact[0] - 1e-10
    assert nodes.max() <= exact[-1] + 1e-10
    for power in (1, 2, 3):
        draws = np.sum(weights * nodes**power, 1)
        error = draws.std(ddof=1) / np.sqrt(60)
        assert abs(draws.mean() - np.mean(exact**power)) < 3 * error
        # The smooth curve has these moments too, but for its width.
        smooth = np.trapezoid(grid**power * density, grid)
        width = 0.01 * (nodes.max() - nodes.min())
        want = draws.mean()
        if power > 1:
            mean = np.mean(np.sum(weights * nodes, 1))
            want += width**2 * (1 if power == 2 else 3 * mean)
        np.testing.assert_allclose(smooth, want, rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def density_of(fun, w):
    return flatness.spectral_density(jr.key(0), fun, w, num_probes=2)


def test_density_of_a_multiple_of_the_identity_and_of_nothing():
    q = jnp.linalg.qr(jr.normal(jr.key(0), (4, 4)))[0]
    almost = 1 + 1e-6 * jnp.arange(4)  # a range of few roundings
    for fun, value in ((lambda w: jnp.sum(almost * (q @ w) ** 2), 2), (jnp.sum, 0)):
        got = density_of(fun, jnp.ones(4))
        np.testing.assert_allclose(got.nodes, value, atol=1e-4)
        grid, density = np.asarray(got.grid), np.asarray(got.density)
        np.testing.assert_allclose(grid[np.argmax(density)], value, atol=1e-3)
        np.testing.assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-2)


def test_density_is_drawn_with_units():
    density = density_of(quadratic, jnp.ones(3))
    figure = flatness.plot_density(density)
    (axes,) = figure.axes
    assert "[loss / parameter$^2$]" in axes.get_xlabel()
    assert "[parameter$^2$ / loss]" in axes.get_ylabel()
    assert axes.get_yscale() == "log"
    x, y = map(np.asarray, axes.lines[0].get_data())
    np.testing.assert_allclose(x, density.grid)
    np.testing.assert_allclose(y.max(), np.max(density.density))
    figure.canvas.draw()


def largest_rise(hessian, gradient, rho):
    """The most of g^T e + e^T H e / 2 in the ball, for H >= 0: e = rho u on the sphere.

    Two dimensions: all directions u.
    """
    angle = np.linspace(0, 2 * np.pi, 200_001)
    e = rho * np.stack([np.cos(angle), np.sin(angle)])
    return np.max(gradient @ e + np.sum(e * (hessian @ e), 0) / 2)


def test_m_sharpness_of_quadratics_is_the_maximum():
    h = np.array([[2.0, 0.3], [0.3, 8.0]])
    w, rho = np.array([0.4, 0.1]), 0.5
    # Gradients almost along the flatter axis: SAM's point is not the maximum.
    b = h @ w - [[1, 0.05], [0.8, 0.1], [-1, 0.04], [0.9, -0.07]]

    def loss(w, b):
        return jnp.sum(w * (jnp.asarray(h) @ w)) / 2 - jnp.mean(b @ w)

    for num_shards in (1, 2, 4):
        means = b.reshape(num_shards, -1, 2).mean(1)
        gradients = h @ w - means
        want = np.mean([largest_rise(h, g, rho) for g in gradients])
        steps = [rho * g / np.linalg.norm(g) for g in gradients]
        first = np.mean(
            [g @ e + e @ h @ e / 2 for g, e in zip(gradients, steps, strict=True)]
        )
        with x64(True):
            settings = {"rho": rho, "num_shards": num_shards}
            args = loss, jnp.asarray(w), jnp.asarray(b)
            value = float(flatness.m_sharpness(*args, **settings).value)
            most = float(flatness.m_sharpness(*args, num_steps=50, **settings).value)
        np.testing.assert_allclose(value, first, rtol=1e-10)
        np.testing.assert_allclose(most, want, rtol=1e-8)
        assert first < 0.99 * want


def test_the_first_order_form_grows_under_refinement():
    with x64(True):
        model, (x, labels) = net(), data()
        found = []
        for num_shards in (1, 4, 24):
            got = eqx.filter_jit(flatness.m_sharpness)(
                cross_entropy, model, x, labels, rho=1e-5, num_shards=num_shards
            )
            found.append([float(got.first_order), float(got.value)])
        gradients = [
            np.linalg.norm(jax.jit(jax.grad(loss))(w))
            for loss, w in (
                flat_loss(model, x[i : i + 6], labels[i : i + 6])
                for i in range(0, 24, 6)
            )
        ]
    first, value = np.array(found).T
    assert np.all(np.diff(first) > 0)
    np.testing.assert_allclose(first[1], 1e-5 * np.mean(gradients), rtol=1e-10)
    np.testing.assert_allclose(value, first, rtol=1e-3)


def test_m_sharpness_is_never_negative_and_safe_at_a_stationary_point():
    def fun(w, x):
        return jnp.mean(jnp.cos(x[:, 0] * jnp.sum(w)))

    x, w = jnp.ones((2, 1)), jnp.zeros(2)

    def value(w, rho):
        return flatness.m_sharpness(fun, w, x, rho=rho).value

    # The gradient is zero; a maximum has nothing above it.
    slopes = jax.grad(value, (0, 1))(w, 0.5)
    assert value(w, 0.5) == 0
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slopes))
    # Beyond the next minimum the step overshoots the maximum that it climbs.
    assert value(w + 0.1, 2.0) >= 0
    np.testing.assert_array_equal(value(w + 0.1, 0.0), 0)


def test_average_sharpness():
    """Of a quadratic rho^2 tr H / 2; the slope at w, however steep, adds no error."""
    with x64(True):
        w = jnp.array([1.0, -2.0, 3.0])

        @jax.jit
        def rise(rho):
            return flatness.average_sharpness(
                jr.key(0), quadratic, w, rho=rho, num_samples=4000, batch_size=500
            )

        value, error = map(float, rise(0.1))
    assert abs(value - 0.01 * (-2) / 2) < 3 * error
    # Var u^T H u / 2 = sum lambda^2 / 2.
    np.testing.assert_allclose(error, 0.01 * np.sqrt(14 / 2 / 4000), rtol=0.05)


def test_sweeps_over_rho_and_parameters_equal_loops():
    with x64(True):
        rhos = jnp.array([0.01, 0.1])
        w, x = jnp.array([[0.3, -0.2, 1.0], [2.0, 0.4, 0.1]]), data()[0][:, :3]

        def fun(w, x):
            return jnp.mean(jnp.cos(x @ w))

        def measure(w, rho):
            args = fun, w, x
            return (
                flatness.m_sharpness(*args, rho=rho, num_shards=2, num_steps=2),
                flatness.average_sharpness(jr.key(0), *args, rho=rho, num_samples=2),
                flatness.lambda_max(jr.key(0), *args, num_steps=2),
                flatness.hessian_trace(jr.key(0), *args, num_samples=2),
                flatness.spectral_density(
                    jr.key(0), *args, num_probes=2, num_steps=2, num_points=5
                ),
            )

        grid = jax.jit(jax.vmap(jax.vmap(measure, (None, 0)), (0, None)))(w, rhos)
        single = jax.jit(measure)
        for i in range(2):
            for j in range(2):
                for got, want in zip(
                    jax.tree.leaves(grid),
                    jax.tree.leaves(single(w[i], rhos[j])),
                    strict=True,
                ):
                    np.testing.assert_allclose(got[i, j], want, rtol=1e-9, atol=1e-13)


def test_half_precision_is_measured_in_float32():
    w = jnp.ones(3, jnp.bfloat16)
    value, _ = flatness.lambda_max(jr.key(0), quadratic, w)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 2, rtol=0.02)


@pytest.mark.misuse  # of the type, that is
def test_counts_are_integers_of_numpy_too():
    w, x = jnp.ones(3), jnp.ones((6, 2))

    def measure(of):
        steps, samples = {"num_steps": of(2)}, {"num_samples": of(2)}
        args = jr.key(0), quadratic, w
        return (
            flatness.m_sharpness(quadratic, w, x, rho=0.1, num_shards=of(3), **steps),
            flatness.lambda_max(*args, **steps),
            flatness.hessian_trace(*args, **samples, batch_size=of(2)),
            flatness.average_sharpness(*args, rho=0.1, **samples),
            flatness.spectral_density(
                *args, num_probes=of(2), num_points=of(5), **steps
            ),
        )

    for got, want in zip(
        jax.tree.leaves(measure(np.int64)), jax.tree.leaves(measure(int)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.misuse
@pytest.mark.parametrize("count", [2.5, 2.0, True])
def test_floats_and_booleans_are_no_counts(count):
    w, key, x = jnp.ones(3), jr.key(0), jnp.ones((6, 2))
    for name in ("num_steps", "num_shards"):
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1"):
            flatness.m_sharpness(quadratic, w, x, rho=0.1, **{name: count})
    with pytest.raises(ValueError, match=r"`num_steps` must be an integer >= 1"):
        flatness.lambda_max(key, quadratic, w, num_steps=count)
    for name in ("num_steps", "num_points"):
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer"):
            flatness.spectral_density(key, quadratic, w, **{name: count})


@pytest.mark.misuse
def test_misuse_is_named():
    w, key, x = jnp.ones(3), jr.key(0), jnp.ones((6, 2))
    with pytest.raises(ValueError, match=r"`num_shards` must divide the 6.*got 4"):
        flatness.m_sharpness(quadratic, w, x, rho=0.1, num_shards=4)
    with pytest.raises(ValueError, match=r"`batch`.*got \[\(5,\), \(6,\)\]"):
        flatness.m_sharpness(quadratic, w, x, jnp.ones(5), rho=0.1)
    with pytest.raises(ValueError, match=r"`batch`.*got \[\]"):
        flatness.m_sharpness(quadratic, w, rho=0.1)
    with pytest.raises(ValueError, match=r"`num_steps` must be an integer >= 1, got 0"):
        flatness.m_sharpness(quadratic, w, x, rho=0.1, num_steps=0)
    with pytest.raises(ValueError, match=r"scalar loss, got shape \(3,\)"):
        flatness.average_sharpness(key, lambda w: w, w, rho=0.1)
    with pytest.raises(ValueError, match=r"`rho` must be >= 0 and finite, got -0.1"):
        flatness.average_sharpness(key, quadratic, w, rho=-0.1)
    with pytest.raises(ValueError, match=r"scalar loss, got shape \(3,\)"):
        flatness.hvp(lambda w: w, w, w)
    with pytest.raises(
        ValueError, match=r"`vector` must be a tree like.*\(3,\).*\(4,\)"
    ):
        flatness.hvp(quadratic, w, jnp.ones(4))
    with pytest.raises(ValueError, match=r"`vector` must be a tree like"):
        flatness.hvp(quadratic, w, [w])
    with pytest.raises(ValueError, match=r"`params`.*got \['complex64'\]"):
        flatness.lambda_max(key, quadratic, w + 1j)
    with pytest.raises(ValueError, match=r"`params`.*got \[\]"):
        flatness.hessian_trace(key, quadratic, jnp.arange(3))
    with pytest.raises(ValueError, match=r"`num_steps` must be an integer >= 1, got 0"):
        flatness.lambda_max(key, quadratic, w, num_steps=0)
    with pytest.raises(
        ValueError, match=r"`num_points` must be an integer >= 2, got 1"
    ):
        flatness.spectral_density(key, quadratic, w, num_points=1)
    with pytest.raises(
        ValueError, match=r"`num_probes` must be an integer >= 1, got 0"
    ):
        flatness.spectral_density(key, quadratic, w, num_probes=0)
    density = flatness.SpectralDensity(*[jnp.ones((2, 3))] * 4)
    with pytest.raises(ValueError, match=r"not a batch of shape \(2, 3\)"):
        flatness.plot_density(density)
