"""Processes on grids against the dense one in float64, for every kind of noise."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import covariance, gp
from jaxlr.core.compat import x64
from jaxlr.core.loop import Status
from tests.gp.reference import dense_gp


SHAPE = (6, 5, 4)
GRID = [np.linspace(0, 1, 6), np.array([0.0, 0.1, 0.4, 0.7, 1.0]), np.arange(4) / 3]
LENGTHS = (0.3, 0.4, 0.5)
RNG = np.random.default_rng(0)
Y = RNG.normal(size=SHAPE)
GAPS = RNG.random(SHAPE) > 0.3
GAPS[2] = False  # a slab, and a row that ends another axis
GAPS[:, 4] = False
MASKS = {"whole": np.ones(SHAPE, bool), "gaps": GAPS}
NOISES = {
    "number": 0.02,
    "product": tuple(0.1 + RNG.random(n) / 5 for n in SHAPE),
    "array": 0.01 + 0.1 * RNG.random(SHAPE),
}
POINTS = RNG.random((5, 3))


def kernels(lengths):
    first = 1.5 * covariance.Matern(lengths[0])
    return (
        first,
        covariance.SquaredExponential(lengths[1]),
        covariance.Matern(lengths[2], nu=1.5),
    )


def factors(lengths, others=None):
    others = GRID if others is None else others
    pairs = zip(kernels(lengths), others, GRID, strict=True)
    return [np.asarray(covariance.gram(k, x, y)) for k, x, y in pairs]


def on_grid(noise):
    if isinstance(noise, tuple):
        return ft.reduce(np.multiply.outer, noise)
    return np.broadcast_to(noise, SHAPE)


def dense(mask, noise, lengths=LENGTHS, points=None):
    k = factors(lengths)
    if points is None:
        return dense_gp(k, on_grid(noise), mask, Y)
    rows = factors(lengths, points.T)
    cross = np.einsum("pi,pj,pk->pijk", *rows).reshape(len(points), -1)
    prior = ft.reduce(
        np.multiply,
        [
            np.asarray(covariance.gram(kernel, x))
            for kernel, x in zip(kernels(lengths), points.T, strict=True)
        ],
    )
    return dense_gp(k, on_grid(noise), mask, Y, cross, prior)


def process(lengths, noise, mask=None, **settings):
    return gp.GridGP(kernels(lengths), GRID, noise, mask, **settings)


def blank(mask):
    return np.where(mask, Y, np.nan)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def central(fun, step=1e-5):
    return (fun(step) - fun(-step)) / (2 * step)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("noise", "mask"),
    [
        ("number", "whole"),
        pytest.param("number", "gaps", marks=SLOW),
        pytest.param("product", "whole", marks=SLOW),
        ("product", "gaps"),
        pytest.param("array", "whole", marks=SLOW),
        ("array", "gaps"),
    ],
)
def test_everything_is_that_of_the_dense_process(noise, mask):
    mask, noise = MASKS[mask], NOISES[noise]

    @jax.jit
    def run(y):
        process_ = process(LENGTHS, noise, mask)
        x, info = process_.solve(y)
        after = process_.posterior(y)
        return x, info, after.mean, after.variance, after.predict(POINTS, batch_size=2)

    @jax.jit
    @ft.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def likelihood(lengths, noise, y):
        return process(lengths, noise, mask).log_marginal_likelihood(y)

    with x64(True):
        x, info, mean, variance, predicted = host(run(blank(mask)))
        values = jnp.asarray(LENGTHS), jax.tree.map(jnp.asarray, noise)
        value, slopes = host(likelihood(*values, blank(mask)))
        want, far = dense(mask, noise), dense(mask, noise, points=POINTS)
        lost = [
            central(
                lambda t, i=i: (
                    dense(
                        mask, noise, np.array(LENGTHS) + t * np.eye(3)[i]
                    ).log_marginal_likelihood
                )
            )
            for i in range(3)
        ]
        way = jax.tree.map(
            lambda w: w * np.cos(np.arange(np.size(w))).reshape(np.shape(w)), noise
        )
        lost_noise = central(
            lambda t: (
                dense(
                    mask, jax.tree.map(lambda w, v: w + t * v, noise, way)
                ).log_marginal_likelihood
            )
        )
    assert info.status == Status.CONVERGED
    assert info.residual < 1e-10
    np.testing.assert_array_equal(info.jitter, 0)
    np.testing.assert_allclose(x, want.solution, atol=1e-8)
    np.testing.assert_array_equal(np.asarray(x)[~mask], 0)
    np.testing.assert_allclose(mean, want.mean.reshape(SHAPE), atol=1e-9)
    known = np.diag(want.covariance).reshape(SHAPE)
    np.testing.assert_allclose(variance, known, atol=1e-11)
    np.testing.assert_allclose(predicted.mean, far.mean, atol=1e-9)
    np.testing.assert_allclose(predicted.variance, np.diag(far.covariance), atol=1e-10)
    np.testing.assert_allclose(value, want.log_marginal_likelihood, rtol=1e-12)
    np.testing.assert_allclose(slopes[0], lost, rtol=1e-7)
    total = sum(
        np.sum(np.asarray(s) * v)
        for s, v in zip(*map(jax.tree.leaves, (slopes[1], way)), strict=True)
    )
    np.testing.assert_allclose(total, lost_noise, rtol=1e-6)
    np.testing.assert_allclose(slopes[2], -want.solution, atol=1e-8)


def test_a_slab_and_a_side_cost_nothing():
    """What has no row in it is left out: no step is needed, and nothing else moves."""
    mask = np.ones(SHAPE, bool)
    mask[2], mask[:, 4] = False, False
    kept = np.ix_([0, 1, 3, 4, 5], range(4), range(4))
    with x64(True):
        x, info = host(
            jax.jit(lambda y: process(LENGTHS, 0.02, mask).solve(y))(blank(mask))
        )
        grid = [GRID[0][[0, 1, 3, 4, 5]], GRID[1][:4], GRID[2]]
        small = gp.GridGP(kernels(LENGTHS), grid, 0.02)
        want, _ = host(jax.jit(lambda y: small.solve(y))(Y[kept]))
    assert info.num_steps == 0
    np.testing.assert_allclose(x[kept], want, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["product", pytest.param("array", marks=SLOW)])
def test_samples_have_the_posterior_moments(noise):
    noise = NOISES[noise]

    @jax.jit
    def run(key):
        after = process(LENGTHS, noise, GAPS, max_dense=0).posterior(blank(GAPS))
        samples = after.sample(key, 1500, batch_size=500)
        return samples, after.estimate_variance(key, num_samples=150, batch_size=100)

    with x64(True):
        samples, (variance, error) = host(run(jr.key(1)))
        want = dense(GAPS, noise)
    known = np.diag(want.covariance)
    samples = samples.reshape(1500, -1)
    z = (samples.mean(0) - want.mean) / np.sqrt(known / 1500)
    assert np.abs(z).max() < 4.5
    assert 0.6 < np.std(z) < 1.5
    np.testing.assert_allclose(
        np.cov(samples.T), want.covariance, atol=6 * known.max() / np.sqrt(1500)
    )
    np.testing.assert_allclose(samples.var(0) / known, 1, atol=6 * np.sqrt(2 / 1500))
    z = (variance.ravel() - known) / error.ravel()
    assert np.abs(z).max() < 5
    assert np.all(error < 0.3 * variance)


@pytest.mark.slow
def test_a_stochastic_determinant_and_its_gradient():
    """They are within their errors of the exact ones, and the errors are right."""

    def found(lengths, key, **settings):
        process_ = process(lengths, 0.02, GAPS, **settings)
        found = process_.evidence(blank(GAPS), key=key, num_probes=4)
        return found.value, found

    value = jax.value_and_grad(found, has_aux=True)
    with x64(True):
        lengths = jnp.asarray(LENGTHS)
        (exact, _), slope = jax.jit(value)(lengths, jr.key(0))
        many = jax.jit(jax.vmap(ft.partial(value, max_dense=0), (None, 0)))(
            lengths, jr.split(jr.key(1), 200)
        )
    (exact, slope), ((values, infos), slopes) = host((exact, slope)), host(many)
    z = (values - exact) / infos.standard_error
    assert np.all(infos.standard_error > 0)
    assert np.abs(np.mean(values) - exact) < 4 * np.std(values) / np.sqrt(200)
    assert 0.5 < np.sqrt(np.median(z**2)) / 0.7 < 1.5
    error = np.std(slopes, 0) / np.sqrt(200)
    np.testing.assert_array_less(np.abs(np.mean(slopes, 0) - slope), 4 * error)
    assert np.all(error < 0.1 * np.abs(slope).max())


def test_float32_on_the_host_is_as_good_as_float64():
    """Known kernels: where the kernels' own float32 matrices lose a thousandth."""
    n = 40
    grid = [np.linspace(0, 1, n)] * 2
    y = np.sin(5 * grid[0])[:, None] * np.cos(4 * grid[0])
    y = y + 0.01 * np.random.default_rng(0).normal(size=(n, n))
    points = np.random.default_rng(1).random((20, 2))

    def run(lengths):
        ks = [covariance.SquaredExponential(l) for l in lengths]
        process_ = gp.GridGP(ks, grid, 1e-4)
        after = process_.posterior(y)
        likelihood = process_.log_marginal_likelihood(y)
        return after.mean, after.variance, likelihood, *after.predict(points)

    out = {}
    for wide in (True, False):
        with x64(wide):
            out[wide] = host(jax.jit(lambda: run((0.3, 0.4)))())
    with x64(False):
        traced = host(jax.jit(run)(jnp.array([0.3, 0.4])))
    for a, b, tolerance in zip(
        out[False], out[True], (1e-6, 1e-5, 1e-6, 2e-6, None), strict=True
    ):
        assert a.dtype == np.float32
        scale = np.abs(b).max() if tolerance else 1  # a difference of variances
        tolerance = tolerance or 1e-6
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)
    for a, b in zip(traced[:3], out[True][:3], strict=True):
        assert np.all(np.isfinite(a))
        scale = np.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, atol=0.1)
    np.testing.assert_allclose(traced[0], out[True][0], atol=0.01)


def test_outputs_are_an_axis():
    """The intrinsic coregionalization model, an output of which misses half."""
    rng = np.random.default_rng(0)
    factor, diagonal = rng.normal(size=(3, 2)), np.array([0.1, 0.2, 0.3])
    times = np.linspace(0, 1, 6)
    y = rng.normal(size=(3, 6))
    mask = np.ones((3, 6), bool)
    mask[1, 3:] = False
    mixing = factor @ factor.T + np.diag(diagonal)
    where, when = np.array([1, 2]), np.array([0.9, 0.35])

    def process_of(factor):
        outputs = gp.Coregionalization(factor, diagonal)
        return gp.GridGP(
            [outputs, covariance.Matern(0.4)], [np.arange(3), times], 0.05, mask
        )

    def log_likelihood(factor):
        return process_of(factor).log_marginal_likelihood(y)

    def run():
        after = process_of(factor).posterior(np.where(mask, y, np.nan))
        points = jnp.stack([where, when], 1)
        none = jnp.array([[3.0, 0.2], [-1.0, 0.2], [1.6, 0.2]])
        return after.mean, after.predict(points), after.predict(none).mean

    with x64(True):
        mean, predicted, nothing = host(jax.jit(run)())
        value, slope = host(
            jax.jit(jax.value_and_grad(log_likelihood))(jnp.asarray(factor))
        )
        k, rows = (
            np.asarray(covariance.gram(covariance.Matern(0.4), x, times))
            for x in (times, when)
        )
    cross = np.einsum("pi,pj->pij", mixing[where], rows).reshape(2, -1)
    prior = np.diag(mixing[where, where])
    noise = np.full((3, 6), 0.05)
    want = dense_gp([mixing, k], noise, mask, y, cross, prior)
    np.testing.assert_allclose(predicted.mean, want.mean, atol=1e-10)
    np.testing.assert_allclose(predicted.variance, np.diag(want.covariance), atol=1e-10)
    assert np.isnan(nothing).all()  # no such outputs
    want = dense_gp([mixing, k], noise, mask, y)
    np.testing.assert_allclose(mean, want.mean.reshape(3, 6), atol=1e-10)
    np.testing.assert_allclose(value, want.log_marginal_likelihood, rtol=1e-12)

    def likelihood(t):
        f = factor + t * np.eye(3, 2)
        b = f @ f.T + np.diag(diagonal)
        return dense_gp([b, k], noise, mask, y).log_marginal_likelihood

    np.testing.assert_allclose(np.trace(slope), central(likelihood), rtol=1e-7)


@pytest.mark.slow
def test_transforms():
    """Over data, hyper-parameters and as an argument, in float32 too."""
    many = np.stack([Y, 2 * Y, np.zeros(SHAPE)])
    with x64(True):
        process_ = process(LENGTHS, 0.02, GAPS)
        x, info = host(jax.jit(jax.vmap(process_.solve))(many))
        alone = host(jax.jit(lambda p, y: p.solve(y)[0])(process_, Y))
        noises = jnp.array([0.02, 0.5])

        @jax.jit
        @jax.vmap
        def values(noise):
            return process(LENGTHS, noise, GAPS).log_marginal_likelihood(Y)

        want = [dense(GAPS, s).log_marginal_likelihood for s in (0.02, 0.5)]
        known = dense(GAPS, 0.02).mean.reshape(SHAPE)
        np.testing.assert_allclose(host(values(noises)), want, rtol=1e-12)
    np.testing.assert_allclose(x[0], alone, atol=1e-8)
    np.testing.assert_allclose(x[1], 2 * x[0], atol=1e-8)
    np.testing.assert_array_equal(x[2], 0)
    np.testing.assert_array_equal(info.status, Status.CONVERGED)
    mean = jax.jit(lambda y: process(LENGTHS, 0.02, GAPS).posterior(y))(Y).mean
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, known, atol=1e-4)


class _Box(covariance.Kernel):
    """1 near 0, to some share: no covariance."""

    share: float

    def _derivative(self, tau, order):
        near = jnp.where(jnp.abs(tau) < 0.3, 1.0, 0.0)
        return (1 - self.share) * jnp.exp(-(tau**2)) + self.share * near


@pytest.mark.slow
def test_jitter_mends_what_is_nearly_a_covariance():
    x, y = np.linspace(0, 1, 8), RNG.normal(size=(8, 4))
    with x64(True):
        ks = [_Box(1e-6), covariance.Matern(0.5)]
        found = gp.GridGP(ks, [x, GRID[2]], 1e-3)
        solution, info = host(jax.jit(lambda y: found.solve(y))(y))
        pairs = zip(ks, found.grid, strict=True)
        k = [np.asarray(covariance.gram(kernel, at)) for kernel, at in pairs]
        least = -np.linalg.eigvalsh(k[0])[0]
        assert least > 1e-10
        jitter = 10 ** np.ceil(np.log10(least))
        np.testing.assert_allclose(info.jitter, [jitter, 0], rtol=1e-9)
        want = dense_gp(
            [k[0] + jitter * np.eye(8), k[1]], np.full((8, 4), 1e-3), y < 9, y
        )
        np.testing.assert_allclose(solution, want.solution, rtol=1e-7)
        assert info.residual < 1e-10

        @jax.jit
        def status(share):
            return gp.GridGP(
                [_Box(share), covariance.Matern(0.5)], found.grid, 1e-3
            ).solve(y)

        x, info = host(status(1.0))
        assert info.status == Status.DIVERGED
        assert np.isnan(info.jitter[0])
        assert np.all(np.isnan(x))


@pytest.mark.misuse
def test_a_kernel_that_is_no_covariance_is_named():
    found = gp.GridGP(
        [covariance.Matern(0.5), _Box(1.0)], [GRID[2], np.linspace(0, 1, 8)], 0.1
    )
    with pytest.raises(ValueError, match=r"`kernels\[1\]` is not positive semi-def"):
        found.solve(np.ones((4, 8)))


@pytest.mark.misuse
def test_misuse_is_named():
    ks = kernels(LENGTHS)
    many = gp.Coregionalization(np.ones((2, 1)), np.ones(2))
    twice = [GRID[0], np.zeros(5), GRID[2]]
    for arguments, text in (
        ((ks[:2], GRID, 0.1), r"`kernels` must be as many .* got 2 and 3"),
        ((ks, [Y, *GRID[1:]], 0.1), r"`grid\[0\]` must be a vector"),
        ((ks, twice, 0.1), r"`grid\[1\]` must have finite points, none of them twice"),
        ((ks, GRID, -0.1), r"`noise` must be positive and finite, got -0.1"),
        ((ks, GRID, (0.1, 0.1, 0.1)), r"`noise` must be a number, a tuple"),
        ((ks, GRID, np.ones(6)), r"for a grid of shape \(6, 5, 4\); got shapes \(6,\)"),
        ((ks, GRID, 0.1, np.ones((6, 5), bool)), r"`mask` must be boolean of shape"),
        ((ks, GRID, 0.1, np.ones(SHAPE)), r"`mask` .* got float64"),
        ((ks, GRID, 0.1, np.zeros(SHAPE, bool)), r"true somewhere"),
        (([many], [np.arange(3)], 0.1), r"`grid\[0\]` must be whole numbers in 0\.\.1"),
    ):
        with pytest.raises(ValueError, match=text):
            gp.GridGP(*arguments)
    with pytest.raises(ValueError, match="`mask` must be known"):
        jax.jit(lambda m: process(LENGTHS, 0.1, m).solve(Y))(GAPS)
    with pytest.raises(ValueError, match="`max_steps` must be an integer"):
        process(LENGTHS, 0.1, max_steps=0.5)
    with pytest.raises(ValueError, match=r"`diagonal` must be >= 0"):
        gp.Coregionalization(np.ones((2, 1)), -np.ones(2))
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(2,\)"):
        gp.Coregionalization(np.ones(2), np.ones(2))
    found = process(LENGTHS, 0.1, GAPS, max_dense=3)
    with pytest.raises(
        ValueError, match=r"`y` must have shape \(6, 5, 4\), got \(6,\)"
    ):
        found.solve(np.ones(6))
    with pytest.raises(ValueError, match=r"`key` is needed: .* `max_dense` 3"):
        found.log_marginal_likelihood(Y)
    after = jax.jit(lambda y: found.posterior(y))(Y)
    with pytest.raises(ValueError, match="use `estimate_variance`"):
        _ = after.variance
    with pytest.raises(ValueError, match=r"`points` must have shape \(P, 3\)"):
        after.predict(np.ones((2, 2)))
    with pytest.raises(
        ValueError, match="`num_samples` must be an integer >= 2, got 1"
    ):
        after.estimate_variance(jr.key(0), num_samples=1)
    with pytest.raises(ValueError, match="differentiable once"):
        jax.jit(jax.hessian(lambda s: process(LENGTHS, s).log_marginal_likelihood(Y)))(
            0.1
        )


def test_no_steps_leave_gaps_unsolved_and_the_status_says_so():
    _, info = process(LENGTHS, 0.1, GAPS, max_steps=0).solve(Y)
    assert info.status != Status.CONVERGED
