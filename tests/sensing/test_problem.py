"""Truths, metrics, noise, outliers and levels."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

from jaxlr import sensing
from jaxlr.core.compat import x64


@pytest.mark.parametrize("is_psd", [False, True])
def test_low_rank_has_the_spectrum_that_was_asked_for(is_psd):
    shape = (8, 8) if is_psd else (8, 6)
    with x64(True):
        m = np.asarray(
            sensing.low_rank(jr.key(0), shape, 3, condition=100.0, is_psd=is_psd)
        )
        other = sensing.low_rank(jr.key(0), shape, 2, spectrum=jnp.array([3.0, 2.0]))
    s = np.linalg.svd(m, compute_uv=False)
    np.testing.assert_allclose(s, [1, 0.1, 0.01] + [0] * (len(s) - 3), atol=1e-14)
    np.testing.assert_allclose(
        np.linalg.svd(other, compute_uv=False)[:3], [3, 2, 0], atol=1e-14
    )
    if is_psd:
        np.testing.assert_allclose(m, m.T, atol=1e-15)
        assert np.linalg.eigvalsh(m).min() > -1e-14


def test_condition_may_be_swept():
    conditions = jnp.array([1.0, 10.0])
    m = jax.vmap(lambda c: sensing.low_rank(jr.key(0), (5, 5), 2, condition=c))(
        conditions
    )
    s = jnp.linalg.svd(m, compute_uv=False)
    np.testing.assert_allclose(s[:, 0] / s[:, 1], conditions, rtol=1e-4)


def test_metrics_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    f, g, m = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)), rng.normal(size=(5, 4))
    with x64(True):
        got = sensing.relative_error(jnp.asarray(f), jnp.asarray(g), jnp.asarray(m))
        noise = sensing.psnr(jnp.asarray(m) + 0.1, jnp.asarray(m))
        best = np.asarray(sensing.best_rank(jnp.asarray(m), 2))
    want = np.linalg.norm(f @ g.T - m) / np.linalg.norm(m)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(noise, 20.0, rtol=1e-12)
    s = np.linalg.svd(m, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(best - m), np.linalg.norm(s[2:]))
    assert np.linalg.matrix_rank(best) == 2


def test_measure_applies_the_operator():
    truth = sensing.low_rank(jr.key(0), (5, 4), 1)
    problem = sensing.measure(sensing.gaussian(jr.key(1), (5, 4), 7), truth)
    np.testing.assert_allclose(problem.y, problem.operator.apply(truth), rtol=1e-5)


@pytest.mark.misuse
def test_lists_will_do():
    shape: tuple[int, int] = [5, 4]  # pyright: ignore[reportAssignmentType]
    m = sensing.low_rank(jr.key(0), shape, 2, spectrum=[2.0, 1.0])
    s = jnp.linalg.svd(m, compute_uv=False)
    np.testing.assert_allclose(s, [2, 1, 0, 0], atol=1e-6)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.5, got 6"):
        sensing.low_rank(jr.key(0), (5, 7), 6)
    with pytest.raises(ValueError, match=r"square `shape`"):
        sensing.low_rank(jr.key(0), (5, 7), 2, is_psd=True)
    with pytest.raises(ValueError, match=r"`spectrum` must have shape \(2,\)"):
        sensing.low_rank(jr.key(0), (5, 7), 2, spectrum=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`condition` or `spectrum`"):
        sensing.low_rank(jr.key(0), (5, 7), 2, condition=3.0, spectrum=jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"`condition` must be in \[1, inf\], got 0\.5"
    ):
        sensing.low_rank(jr.key(0), (5, 7), 2, condition=0.5)
    with pytest.raises(ValueError, match=r"`spectrum` must be >= 0 and finite.*-1"):
        sensing.low_rank(jr.key(0), (5, 5), 2, spectrum=[2.0, -1.0], is_psd=True)
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.2, got 3"):
        sensing.best_rank(jnp.ones((2, 5)), 3)
    with pytest.raises(ValueError, match=r"`truth` must have shape \(2, 2\)"):
        sensing.measure(sensing.identity((2, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"`y` must have shape \(2, 2\)"):
        sensing.SensingProblem(sensing.identity((2, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"`truth` must have shape \(2, 2\)"):
        sensing.SensingProblem(
            sensing.identity((2, 2)), jnp.ones((2, 2)), jnp.ones((3, 2))
        )


def spoilt(share, scale=2.0, key=None):
    clean = sensing.measure(sensing.identity((30, 40)), jnp.ones((30, 40)))
    key = jr.key(0) if key is None else key
    return np.asarray(sensing.add_outliers(key, clean, share, scale).y) - 1


def test_outliers_hit_the_share_that_was_asked_for():
    few, many = spoilt(0.1), spoilt(0.3)
    assert np.sum(few != 0) == 120
    assert np.sum(many != 0) == 360
    np.testing.assert_allclose(np.std(many[many != 0]), 2.0, rtol=0.15)
    np.testing.assert_array_equal(few[few != 0], many[few != 0])  # nested
    assert np.any((many != 0) != (spoilt(0.3, key=jr.key(1)) != 0))
    swept = jax.vmap(lambda p: spoilt_sum(p))(jnp.array([0.0, 0.1, 1.0]))
    np.testing.assert_array_equal(swept, [0, 120, 1200])


def spoilt_sum(share):
    clean = sensing.measure(sensing.identity((30, 40)), jnp.ones((30, 40)))
    return jnp.sum(sensing.add_outliers(jr.key(0), clean, share, 2.0).y != 1)


def test_noise_has_the_deviation_that_was_asked_for():
    clean = sensing.measure(sensing.identity((30, 40)), jnp.ones((30, 40)))
    noisy = sensing.add_noise(jr.key(0), clean, 0.3)
    np.testing.assert_allclose(np.std(np.asarray(noisy.y)), 0.3, rtol=0.1)
    assert noisy.truth is clean.truth


LINKS = {"probit": scipy.stats.norm.cdf, "logit": scipy.stats.logistic.cdf}


@pytest.mark.parametrize("link", LINKS)
def test_levels_have_the_probabilities_of_their_likelihood(link):
    thresholds, scale = np.array([-1.0, 0.2, 0.9]), 0.7
    x = np.array([-2.0, -0.3, 0.2, 1.5])
    edges = np.concatenate([[-np.inf], thresholds, [np.inf]])
    cdf = LINKS[link]((edges - x[:, None]) / scale)
    with x64(True):
        quantizer = sensing.Quantizer(thresholds, scale, link)
        levels = np.arange(4.0)
        got = np.array(
            [
                quantizer.log_likelihood(jnp.full(4, level), jnp.asarray(x))
                for level in levels
            ]
        ).T
        np.testing.assert_allclose(got, np.log(np.diff(cdf)), rtol=1e-9)
        many = quantizer.draw(jr.key(0), jnp.asarray(np.tile(x, (20_000, 1))))
    shares = (np.asarray(many)[..., None] == levels).mean(0)
    np.testing.assert_allclose(shares, np.diff(cdf), atol=0.015)


@pytest.mark.parametrize("link", LINKS)
def test_likelihoods_are_finite_in_the_tails_and_smooth(link):
    quantizer = sensing.Quantizer([-1.0, 0.0, 1.0], 0.1, link)
    for x in (-30.0, 0.0, 30.0):
        for level in range(4):
            value, slope = jax.value_and_grad(
                lambda x, level=level: quantizer.log_likelihood(jnp.asarray(level), x)
            )(jnp.asarray(x))
            assert np.isfinite(value), (x, level)
            assert np.isfinite(slope), (x, level)
    step = 1e-3
    with x64(True):
        quantizer = sensing.Quantizer([-1.0, 0.0, 1.0], 0.5, link)
        for level in range(4):

            def value(x, level=level):
                return quantizer.log_likelihood(jnp.asarray(level), x)

            x = jnp.asarray(0.3)
            want = (value(x + step) - value(x - step)) / (2 * step)
            np.testing.assert_allclose(jax.grad(value)(x), want, rtol=1e-4)
        for level in (4.0, 0.5, -1.0):
            assert np.isnan(quantizer.log_likelihood(jnp.asarray(level), x))


@pytest.mark.misuse
def test_noise_and_levels_name_what_is_wrong():
    clean = sensing.measure(sensing.identity((3, 3)), jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\], got 1\.2"):
        sensing.add_outliers(jr.key(0), clean, 1.2, 1.0)
    with pytest.raises(ValueError, match=r"link 'probi'.*did you mean 'probit'"):
        sensing.Quantizer([0.0], 1.0, "probi")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`thresholds` must ascend"):
        sensing.Quantizer([0.0, -1.0], 1.0)
    with pytest.raises(ValueError, match=r"`thresholds` must be a vector.*\(1, 1\)"):
        sensing.Quantizer([[0.0]], 1.0)
    with pytest.raises(ValueError, match=r"`scale` must be positive and finite, got 0"):
        sensing.Quantizer([0.0], 0.0)
    levels = sensing.quantize(jr.key(0), clean, sensing.Quantizer([0.0], 1.0))
    for name, change in (
        ("add_noise", lambda: sensing.add_noise(jr.key(0), levels, 0.1)),
        ("add_outliers", lambda: sensing.add_outliers(jr.key(0), levels, 0.1, 1.0)),
        ("quantize", lambda: sensing.quantize(jr.key(0), levels, levels.quantizer)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` needs measurements that are"):
            change()
    with pytest.raises(ValueError, match=r"`truth` must be finite, got inf at \(0,"):
        sensing.measure(sensing.identity((1, 1)), jnp.full((1, 1), jnp.inf))
