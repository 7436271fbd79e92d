"""Fourier modes and noise against sines of NumPy."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.data import fourier_modes, fourier_noise


@pytest.mark.parametrize("frequency", [0.0, 1 / 3, 0.0123, 0.4999, 0.5])
def test_noise_is_a_sine_to_rounding_even_late_in_a_long_sequence(frequency):
    length = 16384
    turns = np.float64(np.float32(frequency)) * np.arange(length)
    expected = 3 * np.sin(2 * np.pi * turns + 0.7)
    x = jnp.zeros((2, length, 3))
    noisy = jax.jit(fourier_noise)(x, frequency, 3.0, 0.7)
    assert noisy.dtype == jnp.float32
    np.testing.assert_allclose(
        noisy, np.broadcast_to(expected[:, None], x.shape), rtol=0, atol=3e-5
    )


def test_noise_adds_to_x_and_is_differentiated_and_mapped():
    with x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)))
        f, a, p, l = 0.123, 0.5, 0.3, np.arange(50.0)
        angle = 2 * np.pi * f * l + p
        expected = np.asarray(x) + a * np.sin(angle)[:, None]
        np.testing.assert_allclose(
            fourier_noise(x, f, a, p), expected, rtol=0, atol=1e-13
        )
        jacobian = jax.jit(jax.jacfwd(fourier_noise, (1, 2, 3)))(x, f, a, p)
        by_hand = (
            a * np.cos(angle) * 2 * np.pi * l,
            np.sin(angle),
            a * np.cos(angle),
        )
        for measured, wanted in zip(jacobian, by_hand, strict=True):
            np.testing.assert_allclose(measured[:, 0], wanted, rtol=0, atol=1e-11)
        many = jax.vmap(lambda f: fourier_noise(x, f, a, p))
        np.testing.assert_allclose(many(jnp.array([0.3, f]))[1], expected, atol=1e-13)
    half = fourier_noise(jnp.ones((4, 1), jnp.bfloat16), 0.25, 1.0)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half[:, 0].astype(float), [1.0, 2.0, 1.0, 0.0])


X = jnp.zeros((4, 1))


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fourier_noise(X[0], 0.1, 1.0), "`x` must be floating"),
        (lambda: fourier_noise(X.astype(int), 0.1, 1.0), "`x` .* int"),
        (
            lambda: fourier_noise(X, 0.6, 1.0),
            r"`frequency` must be in \[0, 0\.5\], got 0\.6",
        ),
        (lambda: fourier_noise(X, -0.1, 1.0), "`frequency`"),
        (lambda: fourier_noise(X, float("nan"), 1.0), "`frequency`"),
        (lambda: fourier_noise(X, 0.1, jnp.ones(2)), "`amplitude` .*scalar"),
        (lambda: fourier_noise(X, 0.1, 1.0, jnp.ones(2)), "`phase`"),
        (lambda: fourier_modes(jr.key(0), 0, 4, jnp.ones(1) / 4), "`num`"),
        (lambda: fourier_modes(jr.key(0), 1, 0, jnp.ones(1) / 4), "`length`"),
        (
            lambda: fourier_modes(jr.key(0), 1, 4, jnp.ones(1) / 4, horizon=0),
            "`horizon` must be an integer >= 1, got 0",
        ),
        (lambda: fourier_modes(jr.key(0), 1, 4, jnp.ones(1)), "`modes`"),
        (lambda: fourier_modes(jr.key(0), 1, 4, jnp.zeros(0)), "vector"),
        (lambda: fourier_modes(jr.key(0), 1, 4, jnp.zeros((1, 1))), "vector"),
    ],
)
def test_misuse_of_fourier_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("horizon", [1, 5])
def test_signals_are_mixtures_of_the_modes_and_the_target_is_ahead(horizon):
    modes, length = np.array([0.03, 0.11, 0.2]), 40

    def make(key, modes):
        return fourier_modes(key, 2000, length, modes, horizon=horizon)

    with x64(True):
        data = jax.jit(make)(jr.key(0), jnp.asarray(modes))
        other = jax.jit(make)(jr.key(0), jnp.asarray(modes + 0.2))
    x, target = np.asarray(data.x)[..., 0], np.asarray(data.target)[..., 0]
    assert x.shape == target.shape == (2000, length)
    np.testing.assert_array_equal(x[:, horizon:], target[:, :-horizon])
    # A mode solves u_{l+1} = 2 cos(2 pi f) u_l - u_{l-1}; so does their sum the product
    # of the three, and no shorter one.
    whole = np.concatenate([x, target[:, -horizon:]], axis=1)
    for i, f in enumerate(modes):
        assert np.abs(whole).max() > 1e-2, i
        whole = (
            whole[:, 2:] - 2 * np.cos(2 * np.pi * f) * whole[:, 1:-1] + whole[:, :-2]
        )
    assert np.abs(whole).max() <= 1e-12
    # Variance 1 at every step: four deviations of a mean of 2000 squares of normals.
    assert np.abs(np.mean(x**2, axis=0) - 1).max() <= 4 * (2 / 2000) ** 0.5
    # The same key has the same cosine amplitudes, which alone are seen at step 0.
    np.testing.assert_allclose(x[:, 0], np.asarray(other.x)[:, 0, 0], atol=1e-14)
    assert np.abs(x[:, 1] - np.asarray(other.x)[:, 1, 0]).max() > 0.1
