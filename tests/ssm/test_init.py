"""Starting matrices against what is known of them in closed form."""

import numpy as np
import pytest

from jaxlr import ssm
from jaxlr.ssm import theory
from jaxlr.ssm.ptd import condition


SIZES = (2, 16, 64, 256)


@pytest.mark.parametrize("n", SIZES)
def test_hippo_is_skew_but_for_a_rank_one_part(n):
    a, b = ssm.hippo_legs(n)
    p = b / np.sqrt(2)
    np.testing.assert_allclose(p, np.sqrt(np.arange(n) + 0.5))
    skew = a + np.outer(p, p) + np.eye(n) / 2
    np.testing.assert_allclose(skew, -skew.T, atol=1e-12 * n)
    np.testing.assert_array_equal(np.triu(a, 1), 0)
    assert a[-1, 0] == pytest.approx(-np.sqrt(2 * n - 1))
    np.testing.assert_array_equal(np.diag(a), -(np.arange(n) + 1))


def test_norm_of_hippo_grows_as_two_over_pi_n_squared():
    a, _ = ssm.hippo_legs(256)
    assert np.linalg.norm(a, 2) / 256**2 == pytest.approx(2 / np.pi, rel=1e-5)


def test_kernels_of_hippo_are_legendre_polynomials():
    n, times = 16, np.linspace(0.01, 5, 40)
    a, b = ssm.hippo_legs(n)
    from scipy.linalg import expm

    got = np.stack([expm(t * a) @ b for t in times], axis=1)
    values = np.polynomial.legendre.legvander(2 * np.exp(-times) - 1, n - 1).T
    want = np.sqrt(2 * np.arange(n) + 1)[:, None] * values * np.exp(-times)
    np.testing.assert_allclose(got, want, atol=1e-12 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
def test_dplr_gives_hippo_back(n):
    a, b = ssm.hippo_legs(n)
    lam, p, b_modal, v = ssm.dplr_legs(n)
    np.testing.assert_allclose(v.conj().T @ v, np.eye(n), atol=1e-14 * n)
    got = v @ (np.diag(lam) - np.outer(p, p.conj())) @ v.conj().T
    np.testing.assert_allclose(got, a, atol=1e-13 * np.abs(a).max() * n)
    np.testing.assert_allclose(v @ b_modal, b, atol=1e-12 * b.max())
    np.testing.assert_allclose(v @ p, b / np.sqrt(2), atol=1e-12 * b.max())
    np.testing.assert_array_equal(lam, lam[::-1].conj())
    assert np.all(b_modal.real > 0)
    assert np.all(np.diff(lam.imag) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
def test_eigenfrequencies_solve_their_equation(n):
    omega = ssm.dplr_legs(n).lam.imag[n // 2 :][::-1]
    j = np.arange(n // 2) + 1
    np.testing.assert_allclose(
        theory.eigenfrequency_count(n, omega) - 0.5, j - 0.5, rtol=1e-11
    )


@pytest.mark.parametrize(
    ("kind", "imag"),
    [
        ("lin", [0, np.pi, 2 * np.pi, 3 * np.pi]),
        ("inv", 8 / np.pi * np.array([7, 8 / 3 - 1, 8 / 5 - 1, 8 / 7 - 1])),
        ("inv2", 8 / np.pi * np.array([7, 3, 8 / 3 - 1, 1])),
        ("quad", np.array([1, 9, 25, 49]) / np.pi),
    ],
)
def test_starts_in_closed_form(kind, imag):
    lam, b = ssm.s4d(8, kind)
    np.testing.assert_allclose(lam, -0.5 + 1j * np.asarray(imag), rtol=1e-15)
    np.testing.assert_array_equal(b, 1)


def test_other_starts():
    lam, _ = ssm.s4d(8, "real")
    np.testing.assert_array_equal(lam, [-1, -2, -3, -4])
    lam, _ = ssm.s4d(4096, "random")
    assert np.all(lam.real == -0.5)
    logs = np.log(lam.imag)
    assert abs(logs.mean()) < 0.07
    assert abs(logs.std() - 1) < 0.05
    np.testing.assert_array_equal(lam, ssm.s4d(4096, "random", seed=0)[0])
    assert not np.array_equal(lam, ssm.s4d(4096, "random", seed=1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
def test_legs_is_half_of_the_normal_part(n):
    lam, b = ssm.s4d(n)
    legs = ssm.dplr_legs(n)
    np.testing.assert_array_equal(lam, legs.lam[n // 2 :])
    np.testing.assert_array_equal(b, legs.b[n // 2 :] / 2)
    assert np.all(lam.imag > 0)


@pytest.mark.parametrize(("n", "kappa"), [(16, 2.80421), (64, 2.94974), (256, 2.98737)])
def test_rank_one_has_the_condition_of_the_table(n, kappa):
    lam, _, info = ssm.ptd(*ssm.hippo_legs(n))
    assert info.kappa == pytest.approx(kappa, abs=1e-5)
    assert lam.shape == (n // 2,)
    assert np.all(lam.imag > 0)
    assert info.abscissa == lam.real.max() < 0


def test_rank_one_at_one_is_s4d():
    lam, b, info = ssm.ptd(*ssm.hippo_legs(16), t=1.0)
    want_lam, want_b = ssm.s4d(16)
    np.testing.assert_allclose(lam, want_lam, rtol=1e-12)
    np.testing.assert_allclose(b, want_b, rtol=1e-10)
    np.testing.assert_allclose(info.v, ssm.dplr_legs(16).v[:, 8:], atol=1e-10)
    assert info.kappa == pytest.approx(1)


@pytest.mark.parametrize("method", ["rank1", "random", "optimized"])
def test_transfer_function_is_that_of_the_perturbed_system(method):
    n, s = 8, 1j * np.array([0.3, 2.0, 20.0])
    a, b = ssm.hippo_legs(n)
    lam, b_modal, info = ssm.ptd(a, b, method=method, eps=1e-2)
    scale = 0.75 if method == "rank1" else 1
    c = np.random.default_rng(0).standard_normal((3, n))
    want = [c @ np.linalg.solve(x * np.eye(n) - a - info.e, scale * b) for x in s]
    got = theory.transfer(lam, b_modal, c @ info.v, s)
    np.testing.assert_allclose(got, np.transpose(want), rtol=1e-10)
    assert np.all(b_modal.real > 0)
    assert info.backward_error == pytest.approx(
        np.linalg.norm(info.e, 2) / np.linalg.norm(a, 2)
    )
    full = np.linalg.eigvals(a + info.e)
    assert info.abscissa == pytest.approx(full.real.max())


def test_random_has_the_size_asked_for_and_a_condition_of_its_inverse():
    """At n = 16, eps = 1e-3: 869 for one seed, another program's figure."""
    a, b = ssm.hippo_legs(16)
    kappas = [
        ssm.ptd(a, b, method="random", eps=1e-3, seed=seed)[2].kappa
        for seed in range(20)
    ]
    assert 400 < np.median(kappas) < 2000
    info = ssm.ptd(a, b, method="random", eps=1e-3)[2]
    assert info.backward_error == pytest.approx(1e-3)
    tenth = ssm.ptd(a, b, method="random", eps=1e-4)[2].kappa
    assert 5 < tenth / info.kappa < 20


def test_optimized_trades_condition_for_size():
    a, b = ssm.hippo_legs(16)
    start = ssm.ptd(a, b, method="random", eps=1e-2)[2]
    cheap, dear = (
        ssm.ptd(a, b, method="optimized", eps=1e-2, gamma=gamma)[2]
        for gamma in (1.0, 10.0)
    )

    def price(info, gamma):
        return info.kappa + gamma * np.linalg.norm(info.e)

    assert price(cheap, 1) < price(start, 1) / 2
    assert price(dear, 10) < price(start, 10) / 2
    assert cheap.kappa < dear.kappa
    assert cheap.backward_error > dear.backward_error


def test_gradient_of_the_condition():
    rng = np.random.default_rng(1)
    a = ssm.hippo_legs(8)[0] + rng.standard_normal((8, 8))
    slope = condition(a)[1]
    for _ in range(3):
        d = rng.standard_normal((8, 8))
        numeric = (condition(a + 1e-6 * d)[0] - condition(a - 1e-6 * d)[0]) / 2e-6
        assert np.sum(slope * d) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ssm.hippo_legs(0), "`n` must be an integer >= 1, got 0"),
        (lambda: ssm.hippo_legs(4.0), "`n` must be an integer >= 1, got 4.0"),
        (lambda: ssm.s4d(4.0), "`n` must be an integer >= 2, got 4.0"),
        (lambda: ssm.s4d(4, seed=0.5), "`seed` must be an integer >= 0, got 0.5"),
        (lambda: ssm.s4d(7), "`n` must be even, got 7"),
        (lambda: ssm.dplr_legs(3), "`n` must be even, got 3"),
        (lambda: ssm.s4d(8, "leg"), "Unknown kind 'leg'; did you mean 'legs'?"),
        (lambda: ssm.ptd(np.eye(3), np.ones(2)), r"`a` must be \(n, n\)"),
        (lambda: ssm.ptd(-np.eye(4), np.ones(4)), "must be HiPPO-LegS's"),
        (lambda: ssm.ptd(*ssm.hippo_legs(5)), "with an even number of states"),
        (lambda: ssm.ptd(*ssm.hippo_legs(4), t=2.0), r"`t` must be in \(0, 2\), got 2"),
        (
            lambda: ssm.ptd(*ssm.hippo_legs(4), method="rank"),
            "Unknown method 'rank'; did you mean 'rank1'",
        ),
        (
            lambda: ssm.ptd(*ssm.hippo_legs(4), method="random", eps=0),
            "`eps` must be positive and finite, got 0",
        ),
        (
            lambda: ssm.ptd(*ssm.hippo_legs(4), method="optimized", gamma=-1.0),
            "`gamma` must be positive and finite, got -1",
        ),
        (
            lambda: ssm.ptd(*ssm.hippo_legs(16), method="random", eps=0.1),
            "eigenvalue of real part .* >= 0",
        ),
    ],
)
def test_misuse(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_unstable_systems_when_asked_for():
    info = ssm.ptd(*ssm.hippo_legs(16), method="random", eps=0.1, allow_unstable=True)[
        2
    ]
    assert info.abscissa > 0
