"""Closed forms against dense linear algebra and quadrature."""

import numpy as np
import pytest

from jaxlr import ssm
from jaxlr.ssm import theory


OMEGA = np.array([0.01, 0.7, 3.0, 50.0])


def test_states_of_hippo():
    a, b = ssm.hippo_legs(12)
    want = [np.linalg.solve(1j * w * np.eye(12) - a, b) for w in OMEGA]
    np.testing.assert_allclose(
        theory.legs_states(12, 1j * OMEGA), np.transpose(want), rtol=1e-11
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 64, 256])
def test_s4d_is_hippo_over_one_plus_rho(n):
    top = ssm.dplr_legs(n).lam.imag[-4:]
    s = 1j * np.concatenate([OMEGA, top])
    c = np.random.default_rng(n).standard_normal((4, n))
    lam, b = ssm.s4d(n)
    got = theory.transfer(lam, b, c @ ssm.dplr_legs(n).v[:, n // 2 :], s)
    plain = np.tensordot(c, theory.legs_states(n, s), (-1, 0))
    want = plain / (1 + theory.rho(n, s))
    np.testing.assert_allclose(got, want, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_rank_one_is_hippo_over_one_plus_tau_rho_and_its_bound_holds(t):
    n = 64
    top = ssm.dplr_legs(n).lam.imag[-4:]
    omega = np.concatenate([OMEGA, top])
    c = np.random.default_rng(0).standard_normal((4, n))
    lam, b, info = ssm.ptd(*ssm.hippo_legs(n), t=t)
    got = theory.transfer(lam, b, c @ info.v, 1j * omega)
    plain = np.tensordot(c, theory.legs_states(n, 1j * omega), (-1, 0))
    tau = theory.rank1_tau(t)
    np.testing.assert_allclose(
        got, plain / (1 + tau * theory.rho(n, 1j * omega)), rtol=1e-10
    )
    gap = np.abs(got - plain) / np.abs(plain)
    bound = theory.rank1_gap(n, t, omega)
    assert np.all(gap <= bound * (1 + 1e-9))
    assert np.all(gap >= bound / (1 + tau) * (1 - tau) / 1.01)
    assert np.all(bound <= tau / (1 - tau))


def test_modulus_of_rho():
    got = np.abs(theory.rho(32, 1j * OMEGA))
    np.testing.assert_allclose(got, OMEGA / np.hypot(OMEGA, 32), rtol=1e-12)


@pytest.mark.parametrize(("n", "gap"), [(16, 0.638603), (64, 0.636747)])
def test_spikes(n, gap):
    legs = ssm.dplr_legs(n)
    omega = legs.lam.imag[-1:]
    lam, b = ssm.s4d(n)
    got = theory.transfer(lam, b, legs.v[0, n // 2 :], 1j * omega)
    got = np.abs(got - theory.legs_states(n, 1j * omega)[0])
    assert got == pytest.approx(gap, abs=1e-6)
    assert got == pytest.approx(theory.spike_height(1), rel=0.04 * 16 / n)


def test_inner_product_of_kernels():
    rng = np.random.default_rng(0)
    lam, other = (-rng.uniform(0.5, 1, 3) + 1j * rng.uniform(0, 3, 3) for _ in range(2))
    w, other_w = (rng.standard_normal(3) + 1j * rng.standard_normal(3) for _ in "12")
    t = np.linspace(0, 60, 200_001)

    def values(lam, w):
        return 2 * (w[:, None] * np.exp(lam[:, None] * t)).sum(0).real

    want = np.trapezoid(values(lam, w) * values(other, other_w), t)
    got = theory.kernel_inner(lam, w, other, other_w)
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.misuse
def test_misuse():
    with pytest.raises(ValueError, match=r"`t` must be in \(0, 1\), got 1"):
        theory.rank1_gap(8, 1.0, OMEGA)
    for call in (
        lambda n: theory.legs_states(n, 1j),
        lambda n: theory.rho(n, 1j),
        lambda n: theory.rank1_gap(n, 0.5, OMEGA),
        lambda n: theory.eigenfrequency_count(n, OMEGA),
    ):
        np.testing.assert_array_equal(call(np.int64(4)), call(4))
        with pytest.raises(ValueError, match="`n` must be an integer >= 1"):
            call(2.5)
