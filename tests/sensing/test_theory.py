"""Closed forms against direct simulation in NumPy, and against plain formulas."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing import theory


def basis_and_start(n=20, r=2, k=4, alpha=0.5, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, r)))[0]
    return q, rng.normal(size=(n, k)) * alpha / np.sqrt(n)


def singular_values(x, q):
    with x64(True):
        return np.asarray(
            theory.null_space_singular_values(jnp.asarray(x), jnp.asarray(q))
        )


def test_null_space_singular_values_by_the_projector():
    q, x = basis_and_start()
    # The projector on ker(Q^T X), without a basis of it.
    kernel = np.eye(4) - np.linalg.pinv(q.T @ x) @ (q.T @ x)
    want = np.linalg.svd((x - q @ (q.T @ x)) @ kernel, compute_uv=False)[:2]
    np.testing.assert_allclose(singular_values(x, q), want, rtol=1e-12)
    naive = np.linalg.svd(x - q @ (q.T @ x), compute_uv=False)[:2]
    assert np.abs(want / naive - 1).max() > 0.05  # the kernel matters


def test_no_columns_in_excess_leave_nothing():
    q, x = basis_and_start(k=2)
    values = singular_values(x, q)
    assert values.shape == (0,)
    with x64(True):
        assert theory.symmetric_error(jnp.asarray(values), eta=0.1, num_steps=10) == 0


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_symmetric_error_is_that_of_a_simulation(alpha):
    q, x = basis_and_start(alpha=alpha)
    s, m = singular_values(x, q), q @ q.T
    errors = []
    for _ in range(4001):
        gap = x @ x.T - m
        errors.append(np.linalg.norm(gap))
        x = x - 0.1 * gap @ x
    with x64(True):
        times = jnp.array([1000, 2000, 4000])
        got = theory.symmetric_error(jnp.asarray(s), eta=0.1, num_steps=times)
    np.testing.assert_allclose(got, np.array(errors)[[1000, 2000, 4000]], rtol=0.01)
    late = np.sqrt(2) / (2 * 0.1 * 4000)
    if alpha == 1.0:
        np.testing.assert_allclose(got[-1], late, rtol=0.02)


@pytest.mark.parametrize("beta", [None, 0.7])
def test_rates_are_those_of_a_simulation(beta):
    q, f = basis_and_start(alpha=0.5, k=3)
    v, g = basis_and_start(n=15, alpha=0.5 / 3, k=3, seed=1)
    m = q @ v.T
    errors = []
    for t in range(6000):
        gap = f @ g.T - m
        errors.append(np.linalg.norm(gap))
        if errors[-1] < 1e-12:
            break
        if beta and t == 300:
            with x64(True):
                f, g = map(
                    np.asarray, sensing.rebalance(jnp.asarray(f), jnp.asarray(g), beta)
                )
        f, g = f - 0.1 * gap @ g, g - 0.1 * gap.T @ f
    rate = np.log(errors[-41] / errors[-1]) / 40
    with x64(True):
        if beta:
            want = theory.rebalanced_rate(eta=0.1, beta=beta)
            tolerance = 0.1
        else:
            limit = jnp.asarray(singular_values(f, q))
            want = theory.asymmetric_rate(limit, eta=0.1)
            tolerance = 0.03
            exact = np.linalg.svd(f, compute_uv=False)[-1]  # see its docstring
            np.testing.assert_allclose(rate, -np.log1p(-0.1 * exact**2), rtol=1e-3)
    np.testing.assert_allclose(rate, want, rtol=tolerance)


def test_rates_to_first_order():
    with x64(True):
        s = jnp.array([0.3, 0.1])
        np.testing.assert_allclose(theory.asymmetric_rate(s, eta=1e-3), 1e-5, rtol=1e-4)
        np.testing.assert_allclose(
            theory.rebalanced_rate(eta=1e-3, beta=0.5), 2.5e-4, rtol=1e-3
        )


def test_theory_is_differentiable_and_batches():
    with x64(True):
        q, x = map(jnp.asarray, basis_and_start())

        def error(x):
            s = theory.null_space_singular_values(x, q)
            return theory.symmetric_error(s, eta=0.1, num_steps=50)

        step = jr.normal(jr.key(0), x.shape) * 1e-6
        want = (error(x + step) - error(x - step)) / 2
        np.testing.assert_allclose(jnp.sum(jax.grad(error)(x) * step), want, rtol=1e-4)
        batch = jnp.stack([x, 2 * x])
        np.testing.assert_allclose(
            jax.vmap(error)(batch), [error(x), error(2 * x)], rtol=1e-12
        )


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`x` must have at least r = 3.*got 2"):
        theory.null_space_singular_values(jnp.ones((5, 2)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"one number of rows.*\(5, 2\) and \(4, 2\)"):
        theory.null_space_singular_values(jnp.ones((5, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"`singular_values` is empty"):
        theory.asymmetric_rate(jnp.zeros(0), eta=0.1)


def test_degrees_of_freedom_are_the_dimension_of_the_tangent_space():
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(6, 2)), rng.normal(size=(5, 2))
    tangent = [np.outer(np.eye(6)[i], g[:, a]) for i in range(6) for a in range(2)]
    tangent += [np.outer(f[:, a], np.eye(5)[j]) for j in range(5) for a in range(2)]
    rank = np.linalg.matrix_rank(np.reshape(tangent, (len(tangent), -1)))
    assert theory.degrees_of_freedom((6, 5), 2) == rank
    tangent = [np.outer(np.eye(6)[i], f[:, a]) for i in range(6) for a in range(2)]
    tangent = [t + t.T for t in tangent]
    rank = np.linalg.matrix_rank(np.reshape(tangent, (len(tangent), -1)))
    assert theory.degrees_of_freedom((6, 6), 2, is_symmetric=True) == rank


def test_the_noise_floor_is_the_mean_of_least_squares():
    d, m, std = theory.degrees_of_freedom((4, 3), 1), 20, 0.1
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(4000):
        a = rng.normal(size=(m, d)) / np.sqrt(m)
        squares.append(np.sum((np.linalg.pinv(a) @ rng.normal(size=m) * std) ** 2))
    want = theory.noise_floor((4, 3), 1, m, std=std)
    np.testing.assert_allclose(np.mean(squares), want, rtol=0.03)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_sign_rip_scale_is_the_mean_over_measurements(share):
    rng = np.random.default_rng(0)
    m, norm, scale = 400_000, 0.8, 1.5
    inner = norm * rng.normal(size=m)
    noise = scale * rng.normal(size=m) * (rng.uniform(size=m) < share)
    got = np.mean(np.sign(inner - noise) * inner) / norm
    want = theory.sign_rip_scale(norm, outlier_share=share, outlier_scale=scale)
    np.testing.assert_allclose(got, want, rtol=0.01)


@pytest.mark.slow
def test_the_exponent_of_a_small_start_is_that_of_the_run():
    """Slope of log error against log alpha at the end of the linear phase."""
    with x64(True):
        n, rank, m = 30, 1, 3000
        truth = sensing.low_rank(jr.key(0), (n, n), rank, is_psd=True)
        operator = sensing.symmetric_gaussian(jr.key(1), (n, n), m)
        problem = sensing.measure(operator, truth)
        exact = sensing.measure(sensing.identity((n, n)), truth)
        for p, tolerance in ((exact, 0.05), (problem, 0.15)):

            def least(alpha, p=p):
                solver = sensing.gd(
                    p, num_columns=10, alpha=alpha, eta=0.1, is_symmetric=True
                )
                return jnp.min(loop.run(jr.key(2), solver, 500)[1].relative_error)

            alphas = jnp.array([1e-3, 1e-5])
            errors = jax.jit(jax.vmap(least))(alphas)
            slope = jnp.diff(jnp.log(errors)) / jnp.diff(jnp.log(alphas))
            observed = p.operator.adjoint(p.y) / p.operator.isotropy
            want = theory.small_init_exponent(truth, observed, rank)
            assert abs(slope[0] - want) < tolerance
        assert want < 1.9


def test_the_recoverable_rank_is_the_largest_with_measurements_to_spare():
    rank = theory.recoverable_rank((256, 200), 52_428)
    assert 2.5 * rank * (456 - rank) <= 52_428 < 2.5 * (rank + 1) * (455 - rank)
    assert theory.recoverable_rank((256, 200), 10) == 1
    assert theory.recoverable_rank((6, 4), 24, oversampling=1.0) == 4


@pytest.mark.parametrize(("link", "one_bit"), [("probit", 2 / np.pi), ("logit", 0.75)])
def test_levels_keep_the_information_that_their_likelihood_says(link, one_bit):
    """Against its variance over draws; one bit of a weak signal in closed form."""
    thresholds = np.array([-0.7, 0.2, 1.5])
    with x64(True):
        quantizer = sensing.Quantizer(thresholds, 0.8, link)
        efficiency = jax.jit(theory.quantization_efficiency)
        got = efficiency(quantizer, 1.3)
        rng = np.random.default_rng(0)
        x = jnp.asarray(1.3 * rng.normal(size=400_000))
        levels = quantizer.draw(jr.key(0), x)
        score = jax.jit(jax.vmap(jax.grad(quantizer.log_likelihood, 1)))(levels, x)
        whole = {"probit": 1.0, "logit": 1 / 3}[link] / 0.8**2
        np.testing.assert_allclose(np.mean(score**2) / whole, got, rtol=0.01)
        weak = sensing.Quantizer([0.0], 1.0, link)
        share = efficiency(weak, 1e-3)
        np.testing.assert_allclose(share, one_bit, rtol=1e-5)
        many = sensing.Quantizer(np.linspace(-9, 9, 400), 1.0, link)
        share = efficiency(many, 1.0)
        np.testing.assert_allclose(share, 1, rtol=0.01)


@pytest.mark.misuse
def test_predictions_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"`num_measurements` .* >= 8, got 7"):
        theory.noise_floor((4, 3), 1, 7, std=0.1)
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.3, got 4"):
        theory.degrees_of_freedom((4, 3), 4)
    with pytest.raises(ValueError, match=r"`truth` must be a square matrix"):
        theory.small_init_exponent(jnp.ones((3, 2)), jnp.ones((3, 2)), 1)
    with pytest.raises(ValueError, match=r"`observed` must have shape \(3, 3\)"):
        theory.small_init_exponent(jnp.ones((3, 3)), jnp.ones((3, 2)), 1)
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.2, got 3"):
        theory.small_init_exponent(jnp.ones((3, 3)), jnp.ones((3, 3)), 3)
