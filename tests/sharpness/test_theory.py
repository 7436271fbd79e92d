"""Closed forms against direct iteration in NumPy float64, and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import theory


STEPS = (0, 1, 2, 5, 20, 50)


def regression(n=200, d=50, seed=0, sigma=1.0):
    """The problem of the specification: population spectrum 1/i, ||w*|| = 2."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1))
    w = rng.normal(size=d)
    w *= 2 / np.linalg.norm(w)
    return x, w, x @ w + sigma * rng.normal(size=n)


def kernel_regression(n=100, seed=0, sigma=0.5):
    """RBF kernel of bandwidth .2, inputs uniform on [0, 1], f*(x) = sin 8 x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=n)
    k = np.exp(-((x[:, None] - x) ** 2) / (2 * 0.2**2))
    truth = np.sin(8 * x)
    return k, truth, truth + sigma * rng.normal(size=n)


def rates(hessian):
    """`eta` and `rho` of the specification."""
    top = np.linalg.eigvalsh(hessian)[-1]
    return 0.25 / top, 2 / top


def simulate(grad, size, eta, rho, num_steps, shape=()):
    """USAM's iterates from zero, at STEPS; `grad(w)` of the loss."""
    w, kept = np.zeros((size, *shape)), []
    for t in range(num_steps + 1):
        if t in STEPS:
            kept.append(w)
        w = w - eta * grad(w + rho * grad(w))
    return np.array(kept)


def arrays(*xs):
    return tuple(map(jnp.asarray, xs))


@pytest.mark.parametrize("num_samples", [200, 30])
@pytest.mark.parametrize("is_sam", [False, True])
def test_least_squares_iterates(num_samples, is_sam):
    x, _, y = regression(num_samples)
    eta, rho = rates(x.T @ x / num_samples)
    rho = rho if is_sam else 0.0
    want = simulate(lambda w: x.T @ (x @ w - y) / num_samples, 50, eta, rho, 50)
    with x64(True):
        h, b = theory.msam_operator(*arrays(x, y))
        steps = jnp.array(STEPS)
        got = theory.quadratic_iterate(h, b, eta=eta, rho=rho, num_steps=steps)
        one = theory.quadratic_iterate(h, b, eta=eta, rho=rho, num_steps=5)
    assert np.abs(np.asarray(got) - want).max() <= 1e-12
    assert np.abs(np.asarray(one) - want[3]).max() <= 1e-12
    # The formula of the specification, where it has one.
    if num_samples == 200:
        values, v = np.linalg.eigh(x.T @ x / num_samples)
        a = 1 - eta * values * (1 + rho * values)
        ols = np.linalg.lstsq(x, y)[0]
        assert np.abs(v @ ((1 - a**5) * (v.T @ ols)) - want[3]).max() <= 1e-12


def test_kernel_iterates_are_those_of_the_hilbert_space():
    """The gradient is taken numerically, from the loss and the space's inner product.

    With f = sum_j alpha_j k(x_j, .), a direction g has dL(g) = <grad, g>: the gradient
    in alpha is K times the Hilbert space's coefficients.
    """
    k, _, y = kernel_regression()
    n = len(y)
    eta, rho = rates(k / n)
    rng = np.random.default_rng(1)
    alpha, g = rng.normal(size=(2, n))

    def loss(alpha):
        return np.sum((k @ alpha - y) ** 2) / (2 * n)

    def grad(alpha):
        return (k @ alpha - y) / n

    slope = (loss(alpha + 1e-3 * g) - loss(alpha - 1e-3 * g)) / 2e-3
    np.testing.assert_allclose(grad(alpha) @ k @ g, slope, rtol=1e-8)
    want = simulate(grad, n, eta, rho, 50)
    with x64(True):
        got = theory.quadratic_iterate(
            *arrays(k / n, y / n), eta=eta, rho=rho, num_steps=jnp.array(STEPS)
        )
    assert np.abs(np.asarray(got) - want).max() <= 1e-12
    assert np.abs(np.asarray(got) @ k - want @ k).max() <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("is_sam", [False, True])
@pytest.mark.parametrize("kind", ["least squares", "kernel"])
def test_bias_and_variance(kind, is_sam):
    """Both exactly: the iterate is linear in y, so unit vectors give its covariance."""
    if kind == "kernel":
        k, truth, _ = kernel_regression()
        hessian, sigma, predict = k / len(k), 0.5, k
        gram = np.eye(len(k))
    else:
        gram, w, _ = regression()
        hessian, sigma, predict = gram.T @ gram / len(gram), 1.0, gram
        truth = gram @ w
    n = len(truth)
    eta, rho = rates(hessian)
    rho = rho if is_sam else 0.0
    # Columns: the mean of y, then the unit vectors.
    y = np.concatenate([truth[:, None], np.eye(n)], 1)
    iterates = simulate(
        lambda w: gram.T @ (predict @ w - y) / n,
        len(hessian),
        eta,
        rho,
        50,
        (n + 1,),
    )
    outputs = predict @ iterates
    bias = np.sum((outputs[:, :, 0] - truth) ** 2, 1) / n
    variance = sigma**2 * np.sum(outputs[:, :, 1:] ** 2, (1, 2)) / n
    with x64(True):
        if kind == "kernel":
            modes = theory.kernel_modes(*arrays(k, truth))
        else:
            modes = theory.least_squares_modes(*arrays(gram, w))
        got = theory.bias_variance(
            modes,
            num_samples=n,
            sigma=sigma,
            eta=eta,
            rho=rho,
            num_steps=jnp.array(STEPS),
        )
        risk = np.asarray(got.risk)
    assert np.abs(np.asarray(got.squared_bias) - bias).max() <= 1e-12
    assert np.abs(np.asarray(got.variance) - variance).max() <= 1e-12
    np.testing.assert_allclose(risk, bias + variance, atol=1e-12)


def test_monte_carlo_over_the_noise():
    x, w, _ = regression(sigma=0.0)
    eta, rho = rates(x.T @ x / 200)
    rng = np.random.default_rng(1)
    y = (x @ w)[:, None] + rng.normal(size=(200, 2000))
    last = simulate(lambda v: x.T @ (x @ v - y) / 200, 50, eta, rho, 20, (2000,))[-1]
    risks = np.mean((x @ last - (x @ w)[:, None]) ** 2, 0)
    with x64(True):
        modes = theory.least_squares_modes(*arrays(x, w))
        want = theory.bias_variance(
            modes, num_samples=200, sigma=1.0, eta=eta, rho=rho, num_steps=20
        )
        want = float(want.risk)
    assert abs(risks.mean() - want) < 3 * risks.std() / np.sqrt(2000) < 0.02 * want


def mean_risks(problem, steps, seeds=200):
    """Risks of (T, GD or SAM), averaged over draws, and the standard deviation."""

    @jax.jit
    def risks(modes, num_samples, sigma):
        top = modes.eigenvalues[-1]
        return jax.vmap(
            lambda rho: (
                theory.bias_variance(
                    modes,
                    num_samples=num_samples,
                    sigma=sigma,
                    eta=0.25 / top,
                    rho=rho,
                    num_steps=jnp.array(steps),
                ).risk
            )
        )(jnp.array([0, 2 / top]))

    with x64(True):
        found = [np.asarray(risks(*problem(seed))).T for seed in range(seeds)]
    return np.mean(found, 0), np.std(found, 0)


def test_the_specifications_row_of_least_squares():
    """One draw's figures, it gives; they lie within a standard deviation of ours."""

    def problem(seed):
        x, w, _ = regression(seed=seed)
        return theory.least_squares_modes(*arrays(x, w)), 200, 1.0

    mean, spread = mean_risks(problem, (1, 5, 20, 50))
    row = [[0.357, 0.249], [0.195, 0.163], [0.122, 0.120], [0.111, 0.114]]
    assert np.all(np.abs(mean - row) <= spread)
    # SAM wins early and loses late, on average as in the row.
    assert np.all(mean[:3, 1] < mean[:3, 0])
    assert mean[3, 1] > mean[3, 0]


def test_the_specifications_row_of_kernels():
    def problem(seed):
        k, truth, _ = kernel_regression(seed=seed)
        return theory.kernel_modes(*arrays(k, truth)), 100, 0.5

    mean, spread = mean_risks(problem, (5,), seeds=50)
    assert np.all(np.abs(mean[0] - [0.228, 0.150]) <= spread[0])


def test_sam_has_lower_bias_higher_variance_and_wins_where_it_is_said():
    x, w, _ = regression()
    eta, rho = rates(x.T @ x / 200)
    steps = np.array([1, 3, 10, 30, 100])
    with x64(True):
        modes = theory.least_squares_modes(*arrays(x, w))
        settings = dict(
            num_samples=200, sigma=1.0, eta=eta, num_steps=jnp.asarray(steps)
        )
        gd = theory.bias_variance(modes, **settings)
        sam = theory.bias_variance(modes, rho=rho, **settings)
        gain = np.asarray(theory.sam_advantage(modes, rho=rho, **settings))
        difference = np.asarray(gd.risk) - np.asarray(sam.risk)
        assert np.all(np.asarray(sam.squared_bias) < np.asarray(gd.squared_bias))
        assert np.all(np.asarray(sam.variance) > np.asarray(gd.variance))
        values, signal = map(np.asarray, modes)
    np.testing.assert_allclose(gain.sum(-1), difference, atol=1e-12)
    a_sam = 1 - eta * values * (1 + rho * values)
    both = a_sam ** steps[:, None] + (1 - eta * values) ** steps[:, None]
    wins = both > 2 / (1 + 200 * signal)
    np.testing.assert_array_equal(gain > 0, wins)
    assert 0.1 < wins.mean() < 0.9


@pytest.mark.parametrize("num_shards", [1, 4, 10])
def test_msam_recursion(num_shards):
    x, _, y = regression(40, 8)
    eta, rho = rates(x.T @ x / 40)

    def grad(w, rows):
        return x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)

    w = np.zeros(8)
    for _ in range(20):
        w = w - eta * np.mean(
            [
                grad(w + rho * grad(w, rows), rows)
                for rows in np.split(np.arange(40), num_shards)
            ],
            0,
        )
    with x64(True):
        m, r = theory.msam_operator(*arrays(x, y), rho=rho, num_shards=num_shards)
        got = theory.quadratic_iterate(m, r, eta=eta, num_steps=20)
        whole = theory.msam_operator(*arrays(x, y), rho=rho)[0]
        h, b = theory.msam_operator(*arrays(x, y))
        same = theory.quadratic_iterate(h, b, eta=eta, rho=rho, num_steps=20)
    assert np.abs(np.asarray(got) - w).max() <= 1e-12
    excess = np.linalg.eigvalsh(np.asarray(m) - np.asarray(whole))
    if num_shards == 1:
        assert np.abs(np.asarray(same) - w).max() <= 1e-12
    else:
        assert excess.min() > 0  # mean H_j^2 >= H^2


def test_the_two_cycle_is_where_normalized_sam_ends():
    values, rho = np.array([3.0, 1.0, 0.5]), 0.1
    for eta in (0.2, 0.6):
        w = np.array([0.3, -0.2, 0.5])
        for _ in range(3000):
            g = values * w
            w = w - eta * values * (w + rho * g / np.linalg.norm(g))
        with x64(True):
            radius = theory.two_cycle_radius(3.0, eta=eta, rho=rho)
        np.testing.assert_allclose(np.abs(w), [float(radius), 0, 0], atol=1e-12)
        np.testing.assert_allclose(float(radius), eta * 0.3 / (2 - 3 * eta))
    for eta in (2 / 3, 1.0):
        assert theory.two_cycle_radius(3.0, eta=eta, rho=rho) == np.inf


@pytest.mark.parametrize("rho", [0.0, 1e-6, 0.05, 3.0])
def test_the_edge_is_where_steps_stop_converging(rho):
    eta = 0.1
    with x64(True):
        edge = float(theory.edge_of_stability(eta=eta, rho=rho))
        back = float(theory.largest_stable_eta(edge, rho=rho))
    np.testing.assert_allclose(back, eta, rtol=1e-14)
    if rho:
        formula = (np.sqrt(1 + 8 * rho / eta) - 1) / (2 * rho)
        np.testing.assert_allclose(edge, formula, rtol=1e-9)
    else:
        assert edge == 2 / eta
    for factor, grows in ((0.99, False), (1.01, True)):
        w = 1.0
        for _ in range(200):
            w = w - eta * factor * edge * (w + rho * factor * edge * w)
        assert (abs(w) > 1) == grows


def test_transforms_and_derivatives():
    x, w, y = regression(30, 8)
    with x64(True):
        x, w, y = arrays(x, w, y)
        modes = theory.least_squares_modes(x, w)
        h, b = theory.msam_operator(x, y)

        def risk(eta, rho, num_steps):
            return theory.bias_variance(
                modes,
                num_samples=30,
                sigma=0.5,
                eta=eta,
                rho=rho,
                num_steps=num_steps,
            ).risk

        def norm(eta, rho, num_steps):
            w = theory.quadratic_iterate(h, b, eta=eta, rho=rho, num_steps=num_steps)
            return jnp.sum(w**2)

        etas = jnp.array([0.1, 0.3])
        rhos = jnp.array([0.0, 0.2, 1.0])
        steps = jnp.array([0, 3])
        for fun in (risk, norm):
            grid = fun
            for axes in ((None, None, 0), (None, 0, None), (0, None, None)):
                grid = jax.vmap(grid, axes)
            got = np.asarray(jax.jit(grid)(etas, rhos, steps))
            want = [[[fun(e, r, t) for t in steps] for r in rhos] for e in etas]
            np.testing.assert_allclose(got, np.array(want, float), rtol=1e-12)
            slopes = jax.jit(jax.grad(fun, (0, 1)))(0.3, 0.0, 3)
            for slope, (e, r) in zip(slopes, ((1e-6, 0.0), (0.0, 1e-6)), strict=True):
                rise = float(fun(0.3 + e, r, 3) - fun(0.3 - e, -r, 3)) / 2e-6
                np.testing.assert_allclose(float(slope), rise, rtol=1e-7)


def test_derivatives_at_the_corners_are_finite():
    slope = jax.grad(lambda rho: theory.edge_of_stability(eta=0.1, rho=rho))(0.0)
    np.testing.assert_allclose(slope, -((2 / 0.1) ** 2), rtol=1e-5)
    for eta in (0.5, 2.0, 3.0):  # stable, the pole, beyond
        slope = jax.grad(lambda eta: theory.two_cycle_radius(1.0, eta=eta, rho=1.0))(
            eta
        )
        want = 2 / (2 - eta) ** 2 if eta < 2 else 0
        np.testing.assert_allclose(slope, want, rtol=1e-5)
    # A mode without curvature, one that a single step ends, and no step at all.
    hessian, offset = jnp.diag(jnp.array([0.0, 1e-9, 0.5, 2.0])), jnp.ones(4)

    def last(eta, num_steps):
        w = theory.quadratic_iterate(hessian, offset, eta=eta, num_steps=num_steps)
        return jnp.sum(w)

    for num_steps, want in (
        (0, [0, 0]),
        (3, [1.5 + 1.5 + 1.15625 + 0.5, 3 + 3 + 1.6875]),
    ):
        value, slope = jax.value_and_grad(last)(0.5, num_steps)
        np.testing.assert_allclose([value, slope], want, rtol=1e-5)
    modes = theory.Modes(jnp.array([0.0, 2.0]), jnp.ones(2))
    for num_steps in (0, 1, 5):
        slope = jax.grad(
            lambda eta, t=num_steps: (
                theory.bias_variance(
                    modes, num_samples=1, sigma=1.0, eta=eta, num_steps=t
                ).risk
            )
        )(0.5)
        assert np.isfinite(slope)


@pytest.mark.misuse
def test_misuse_is_named():
    x = jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"`num_shards` must divide the 6.*got 4"):
        theory.msam_operator(x, jnp.ones(6), num_shards=4)
    with pytest.raises(ValueError, match=r"`x`.*`y`.*\(6, 3\) and \(3,\)"):
        theory.msam_operator(x, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`x`.*`truth`.*\(6, 3\) and \(6,\)"):
        theory.least_squares_modes(x, jnp.ones(6))
    with pytest.raises(ValueError, match=r"`kernel` must be square.*\(6, 3\)"):
        theory.kernel_modes(x, jnp.ones(6))
    with pytest.raises(ValueError, match=r"`hessian`.*`offset`.*\(3, 3\) and \(6,\)"):
        theory.quadratic_iterate(jnp.eye(3), jnp.ones(6), eta=0.1, num_steps=1)
