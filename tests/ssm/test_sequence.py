"""Discretization, kernel, convolution, scan and step against loops in NumPy."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
from scipy.linalg import expm

from jaxlr import ssm


def system(num_channels=3, n=8, kind="legs", seed=0):
    rng = np.random.default_rng(seed)
    lam, b = ssm.s4d(n, kind)
    shape = (num_channels, n // 2)
    c = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), num_channels))
    return lam, b, c, dt


def dense(lam, dt, method):
    """The matrices of one representative as a real 2 x 2 system, by the textbook."""
    a = dt * np.array([[lam.real, -lam.imag], [lam.imag, lam.real]])
    if method == "zoh":
        big = expm(np.block([[a, dt * np.eye(2)], [np.zeros((2, 4))]]))
        abar, gain = big[:2, :2], big[:2, 2:]
    else:
        inverse = np.linalg.inv(np.eye(2) - a / 2)
        abar, gain = inverse @ (np.eye(2) + a / 2), dt * inverse
    return abar[0, 0] + 1j * abar[1, 0], gain[0, 0] + 1j * gain[1, 0]


METHODS = pytest.mark.parametrize("method", ["zoh", "bilinear"])


@METHODS
@pytest.mark.parametrize(
    "lam", [-0.5 + 3j, -1.0 + 0j, -1e-6 + 1e-5j, -0.3 + 900j, -20.0 + 0j]
)
def test_discretize(x64, lam, method):
    abar, gain = dense(np.complex128(lam), 0.1, method)
    got = ssm.discretize(lam, 2 - 1j, 0.1, method)
    np.testing.assert_allclose(got[0], abar, rtol=1e-12, atol=1e-100)
    np.testing.assert_allclose(got[1], gain * (2 - 1j), rtol=1e-11)


def test_zero_order_hold_in_float32_has_no_cancellation():
    dt = np.float32(1e-4)
    lam = np.complex64(-0.5 + 1j)
    _, got = ssm.discretize(lam, 1.0, dt)
    want = np.expm1(np.complex128(lam) * np.float64(dt)) / np.complex128(lam)
    assert got.dtype == jnp.complex64
    np.testing.assert_allclose(got, want, rtol=3e-7)


def test_derivatives_are_smooth_through_the_series(x64):
    def gain(size):
        return ssm.discretize(-size + 1j * size, 1.0, 1.0)[1].real

    sizes = jnp.asarray([1e-12, 4.999e-4, 5.001e-4, 0.1])
    slopes = jax.vmap(jax.grad(gain))(sizes)
    numeric = (jax.vmap(gain)(sizes * 1.001) - jax.vmap(gain)(sizes * 0.999)) / (
        sizes * 0.002
    )
    np.testing.assert_allclose(slopes[1:], numeric[1:], rtol=1e-4)
    assert slopes[0] == pytest.approx(-0.5)


def loop(lam, b, c, dt, u, method, state=None, resets=None, length=None):
    """One channel at a time, step by step, by `dense`."""
    u = np.asarray(u)
    y, states = np.zeros(u.shape), []
    for place in np.ndindex(u.shape[:-1]):
        h = np.broadcast_to(lam, c.shape)[place[-1]]
        bc = np.broadcast_to(b, c.shape)[place[-1]]
        both = [dense(x, dt[place[-1]], method) for x in h]
        abar, gain = (np.array(x) for x in zip(*both, strict=True))
        x = np.zeros(len(h), complex) if state is None else state[place].copy()
        end = u.shape[-1] if length is None else length[place]
        for i in range(end):
            x = np.zeros_like(x) if resets is not None and resets[place][i] else x
            x = abar * x + gain * bc * u[place][i]
            y[place][i] = 2 * np.sum(c[place[-1]] * x).real
        states.append(x)
    return y, np.array(states).reshape(*u.shape[:-1], -1)


@METHODS
@pytest.mark.parametrize("kind", ["legs", "quad", "real"])
def test_convolution_is_the_loop(x64, method, kind):
    lam, b, c, dt = system(kind=kind)
    u = np.random.default_rng(1).standard_normal((2, 3, 50))
    k = ssm.kernel(lam, b, c, dt, 50, method=method)
    want, _ = loop(lam, b, c, dt, u, method)
    np.testing.assert_allclose(ssm.fft_conv(u, k), want, atol=1e-10)
    impulse = np.zeros((3, 50))
    impulse[:, 0] = 1
    np.testing.assert_allclose(k, loop(lam, b, c, dt, impulse, method)[0], atol=1e-12)


def random_case(rng, batch, channels, length, n, *, with_resets, with_lengths):
    shape = (batch, channels)
    state = rng.standard_normal((*shape, n)) + 1j * rng.standard_normal((*shape, n))
    resets = rng.random((*shape, length)) < 0.15 if with_resets else None
    lengths = rng.integers(0, length + 1, shape) if with_lengths else None
    return state, resets, lengths


@METHODS
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_scan_is_the_loop_at_any_chunk(x64, method, with_resets, with_lengths):
    rng = np.random.default_rng(2)
    lam, b, c, dt = system()
    u = rng.standard_normal((2, 3, 23))
    state, resets, lengths = random_case(
        rng, 2, 3, 23, 4, with_resets=with_resets, with_lengths=with_lengths
    )
    want_y, want_state = loop(lam, b, c, dt, u, method, state, resets, lengths)
    for chunk in (1, 4, 23, 64, None) if method == "zoh" else (4, None):
        y, last = jax.jit(ft.partial(ssm.scan, chunk=chunk, method=method))(
            *(lam, b, c, dt, u, state), resets=resets, lengths=lengths
        )
        np.testing.assert_allclose(y, want_y, atol=1e-10)
        np.testing.assert_allclose(last, want_state, atol=1e-10)


def test_step_is_the_loop_and_pieces_make_the_whole(x64):
    rng = np.random.default_rng(3)
    lam, b, c, dt = system()
    u = rng.standard_normal((3, 40))
    want, want_state = loop(lam, b, c, dt, u, "zoh")
    abar, bbar = ssm.discretize(lam, b, dt[:, None])
    state, ys = jnp.zeros((3, 4), complex), []
    for i in range(40):
        y, state = ssm.step(abar, bbar, c, state, u[:, i])
        ys.append(y)
    np.testing.assert_allclose(jnp.stack(ys, -1), want, atol=1e-12)
    np.testing.assert_allclose(state, want_state, atol=1e-12)
    first, middle = ssm.scan(lam, b, c, dt, u[:, :17], chunk=8)
    second, last = ssm.scan(lam, b, c, dt, u[:, 17:], middle, chunk=5)
    np.testing.assert_allclose(jnp.concatenate([first, second], -1), want, atol=1e-10)
    np.testing.assert_allclose(last, want_state, atol=1e-10)


def test_derivatives_agree_and_maps_do(x64):
    """Of a scan with everything, against the convolution where both exist."""
    rng = np.random.default_rng(4)
    lam, b, c, dt = system()
    u = jnp.asarray(rng.standard_normal((2, 3, 20)))
    weights = rng.standard_normal((2, 3, 20))

    def by_conv(parts, c, dt, u):
        lam = jax.lax.complex(*parts)
        return jnp.sum(weights * ssm.fft_conv(u, ssm.kernel(lam, b, c, dt, 20)))

    def by_scan(parts, c, dt, u):
        lam = jax.lax.complex(*parts)
        return jnp.sum(weights * ssm.scan(lam, b, c, dt, u, chunk=7)[0])

    args = (jnp.asarray(lam.real), jnp.asarray(lam.imag)), jnp.asarray(c), dt, u
    wanted, got = (
        jax.jit(jax.grad(fn, argnums=(0, 1, 2, 3)))(*args) for fn in (by_conv, by_scan)
    )
    for a, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, w, atol=1e-9)
    resets, lengths = rng.random((2, 20)) < 0.2, jnp.asarray([20, 7])

    def one(u, resets, length):
        return ssm.scan(lam, b, c, dt, u, resets=resets, lengths=length, chunk=6)

    mapped = jax.jit(jax.vmap(one))(u, resets, lengths)
    for i in range(2):
        alone = one(u[i], resets[i], lengths[i])
        for a, w in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(a[i], w, atol=1e-11)


@pytest.mark.slow
def test_derivatives_of_a_reset_scan(x64):
    rng = np.random.default_rng(5)
    lam, b, c, dt = system(2)
    u, state = rng.standard_normal((2, 9)), jnp.ones((2, 4), complex)
    resets = rng.random((2, 9)) < 0.3

    def total(u, dt):
        y, last = ssm.scan(lam, b, c, dt, u, state, resets=resets, chunk=4)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.abs(last) ** 2)

    check_grads(jax.jit(total), (u, dt), 1, ["rev"], rtol=1e-5, eps=1e-6)


@pytest.mark.slow
def test_float32_stays_and_is_near(x64):
    lam, b, c, dt = system(n=64)
    u = np.random.default_rng(0).standard_normal((3, 300))
    narrow = [np.asarray(x, np.complex64) for x in (lam, b, c)]
    single = [np.float32(x) for x in (dt, u)]
    scan = jax.jit(ssm.scan)
    want = scan(*(x.astype(complex) for x in narrow), *map(np.float64, single))[0]
    y, last = scan(*narrow, *single)
    assert y.dtype == jnp.float32
    assert last.dtype == jnp.complex64
    scale = np.abs(want).max()
    np.testing.assert_allclose(y, want, atol=2e-5 * scale)
    k = ssm.kernel(*narrow, single[0], 300)
    assert k.dtype == jnp.float32
    np.testing.assert_allclose(ssm.fft_conv(single[1], k), want, atol=2e-5 * scale)


def test_short_and_long_kernels_convolve(x64):
    u, k = np.arange(1.0, 6), np.array([1.0, -2.0])
    np.testing.assert_allclose(ssm.fft_conv(u, k), np.convolve(u, k)[:5], atol=1e-12)
    np.testing.assert_allclose(ssm.fft_conv(u[:1], k), u[:1], atol=1e-12)
    long = np.arange(9.0)
    np.testing.assert_allclose(
        ssm.fft_conv(u, long), np.convolve(u, long)[:5], atol=1e-11
    )


@pytest.mark.parametrize("length", [1, 2, 63, 200])
def test_dplr_kernel_is_that_of_the_dense_matrix(x64, length):
    n, dt = 16, 0.03
    a, b = ssm.hippo_legs(n)
    c = np.random.default_rng(0).standard_normal(n)
    inverse = np.linalg.inv(np.eye(n) - dt / 2 * a)
    abar, x, want = inverse @ (np.eye(n) + dt / 2 * a), dt * inverse @ b, []
    for _ in range(length):
        want.append(c @ x)
        x = abar @ x
    got = jax.jit(lambda dt: ssm.dplr_kernel(ssm.dplr_legs(n), c, dt, length))(dt)
    np.testing.assert_allclose(got, want, atol=1e-11 * np.abs(want).max())


@pytest.mark.slow
def test_s4d_kernel_is_near_and_rank_one_ptd_is_nearer(x64):
    """Both are compared with the exact kernel under the same discretization."""
    n, dt, length = 64, 1e-3, 4000
    c = np.eye(n)[0]
    exact = ssm.dplr_kernel(ssm.dplr_legs(n), c, dt, length)
    lam, b = ssm.s4d(n)
    options = {"method": "bilinear"}
    diagonal = ssm.kernel(
        lam, b, c @ ssm.dplr_legs(n).v[:, n // 2 :], dt, length, **options
    )
    lam, b, info = ssm.ptd(*ssm.hippo_legs(n))
    perturbed = ssm.kernel(lam, b, c @ info.v, dt, length, **options)

    def distance(k):
        return np.linalg.norm(k - exact) / np.linalg.norm(exact)

    assert distance(diagonal) > 0.5
    assert distance(perturbed) < 0.65 * distance(diagonal)


def test_unstable_systems_when_asked_for(x64):
    lam, one = np.array([0.1 + 1j]), np.ones(1)
    got = ssm.kernel(lam, one, one, 0.1, 20, allow_unstable=True)
    want = 2 * (np.expm1(0.1 * lam) / lam * np.exp(0.1 * lam * np.arange(20))).real
    np.testing.assert_allclose(got, want, rtol=1e-10)


def args(**changes):
    lam, b, c, dt = system(1)
    values = {"lam": lam, "b": b, "c": c, "dt": dt} | changes
    return tuple(values.values())


@pytest.mark.slow
def test_a_bilinear_step_that_forgets_all_has_finite_derivatives(x64):
    """At dt lam = -2 abar is 0, whose logarithm is not finite."""
    lam, c = np.array([-20.0, -1.0]) + 0j, jnp.array([1.0, 2.0]) + 0j
    u = np.random.default_rng(0).standard_normal(9)
    wanted = loop(lam, 1, c[None], [0.1], u[None], "bilinear")[0][0]
    options = {"method": "bilinear"}

    def convolved(dt, u):
        return ssm.fft_conv(u, ssm.kernel(lam, jnp.ones(2), c, dt, 9, **options))

    def scanned(dt, u):
        return ssm.scan(lam, jnp.ones(2), c, dt, u, chunk=4, **options)[0]

    for form in (convolved, scanned):
        np.testing.assert_allclose(form(0.1, u), wanted, atol=1e-12)
        slope = jax.grad(lambda dt, form=form: form(dt, u).sum())(0.1)
        assert np.isfinite(slope)


def test_axes_in_front_broadcast_from_any_argument(x64):
    lam, b, c, _ = system()
    u = np.random.default_rng(0).standard_normal(20)
    dt = np.full(3, 0.05)
    want, want_state = loop(lam, b, c, dt, np.tile(u, (3, 1)), "zoh")
    y, last = ssm.scan(lam, b, c, 0.05, u, chunk=8)
    np.testing.assert_allclose(y, want, atol=1e-10)
    np.testing.assert_allclose(last, want_state, atol=1e-10)
    resets = np.arange(20) == 7
    y, last = ssm.scan(lam, b, c, 0.05, u, resets=resets, chunk=8)
    tiled = np.tile(resets, (3, 1))
    want, want_state = loop(lam, b, c, dt, np.tile(u, (3, 1)), "zoh", None, tiled)
    np.testing.assert_allclose(y, want, atol=1e-10)
    np.testing.assert_allclose(last, want_state, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_forms_agree_on_the_type_of_the_output(x64, dtype):
    lam, b, c, dt = system(1)
    u = np.arange(6)[None].astype(dtype)
    convolved = ssm.fft_conv(u, ssm.kernel(lam, b, c, dt, 6))
    scanned, _ = ssm.scan(lam, b, c, dt, u)
    assert scanned.dtype == convolved.dtype == jnp.float64
    np.testing.assert_allclose(scanned, convolved, atol=1e-10)


def test_known_arguments_are_checked_while_others_are_traced():
    lam, b, c, _ = (jnp.asarray(x) for x in system(1))
    for form in (
        lambda u: ssm.fft_conv(u, ssm.kernel(lam, b, c, 0.1, 8)),
        lambda u: ssm.scan(lam, b, c, 0.1, u)[0],
        lambda u: ssm.discretize(lam, b, 0.1)[0].real * u.sum(),
    ):
        assert np.all(np.isfinite(jax.jit(form)(jnp.ones((1, 8)))))


@pytest.mark.misuse
@pytest.mark.parametrize("dt", [-0.1, np.array([0.0])])
def test_a_known_step_that_is_not_positive_is_named_under_jit(dt):
    lam, b, c, _ = system(1)
    with pytest.raises(ValueError, match="`dt` must be positive"):
        jax.jit(lambda u: ssm.scan(lam, b, c, dt, u)[0])(jnp.ones((1, 8)))
    with pytest.raises(ValueError, match="`dt` must be positive"):
        jax.jit(lambda c: ssm.kernel(lam, b, c, dt, 8))(c)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ssm.kernel(*args(dt=np.zeros(1)), 8), "`dt` must be positive"),
        (
            lambda: ssm.kernel(*args(lam=np.full(4, 0.1 + 1j)), 8),
            "`lam` must have negative real parts, got 0.1",
        ),
        (lambda: ssm.kernel(*args(), 8, method="zho"), "Unknown method 'zho'"),
        (lambda: ssm.kernel(*args(), 0), "`length` must be"),
        (lambda: ssm.kernel(*args(), 8, implementation="x"), "Unknown implementation"),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), chunk=0),
            "`chunk` must be an integer >= 1, got 0",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), chunk=4.0),
            r"`chunk` must be an integer >= 1, got 4\.0",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), lengths=np.array([9])),
            r"`lengths` must be in \[0, 8\], got .*9",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), lengths=np.array([2.5])),
            "`lengths` must be whole numbers, got float",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), resets=np.zeros(7, bool)),
            r"`resets` must have shape \(..., 8\), got \(7,\)",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 8)), resets=np.zeros(8, int)),
            "`resets` must be boolean, got int",
        ),
        (
            lambda: ssm.scan(*args(), np.zeros((1, 0))),
            r"`u` must have at least one step, got shape \(1, 0\)",
        ),
        (
            lambda: ssm.dplr_kernel(ssm.dplr_legs(4), np.ones(4), 0.1, 0),
            "`length` must be an integer >= 1, got 0",
        ),
        (
            lambda: ssm.dplr_kernel(ssm.dplr_legs(4), np.ones(4), -0.1, 8),
            r"`dt` must be positive and finite, got -0\.1",
        ),
    ],
)
def test_misuse(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.slow
def test_one_compilation_for_all_lengths():
    lam, b, c, dt = system()
    count = []

    @eqx.filter_jit
    def run(u, length):
        count.append(1)
        return ssm.scan(lam, b, c, dt, u, lengths=length)[0]

    for length in (3, 9):
        run(jnp.ones((3, 10)), jnp.asarray(length))
    assert len(count) == 1
